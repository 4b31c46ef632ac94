"""A full disk, folders that take nothing, a server that goes away, readers over long runs."""

import gc
import json
import os
import subprocess
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
from support import synthetic
from support.captures import Captures, small_model, small_rows
from support.faulty_server import FaultyServer
from support.loading import Records
from support.recipes import CHAT, Recipe, say
from support.trajectories import trajectory, write_trajectories
from torch.utils.data import DataLoader

from axolotl_distill.capture.journal import stored_rows
from axolotl_distill.errors import DistillError
from axolotl_distill.filter.args import FilterArgs
from axolotl_distill.filter.run import Filter
from axolotl_distill.store import open_store


@pytest.fixture
def disk():
    """Mounts a file system of so many KiB, where others may look."""
    folder, mounted = Path(tempfile.mkdtemp()), []
    folder.chmod(0o755)

    def mount(size, *options):
        kind = ["-t", "tmpfs", "-o", ",".join([f"size={size}k", *options]), "tmpfs", str(folder)]
        if subprocess.run(["mount", *kind], capture_output=True, check=False).returncode:
            pytest.skip("file systems can be mounted by root only")
        mounted.append(folder)
        return folder

    yield mount
    for _ in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True)
    folder.rmdir()


def remount(folder, options):
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True)


@contextmanager
def without_root():
    """With nobody's rights."""
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


def test_a_full_disk_ends_a_capture(tmp_path, disk):
    """With our error; what was kept is there, and with room the same command ends it."""
    job = Captures(small_model(tmp_path / "model"), small_rows(), k=8)
    whole = tmp_path / "whole"
    whole.mkdir()
    job.captured(whole)
    full = disk(140)
    with pytest.raises(DistillError, match="Make room"):
        job.captured(full)
    kept = stored_rows(full / "store")
    assert 0 < kept < 300
    with pytest.raises(DistillError, match="Make room"):
        job.captured(full)
    assert stored_rows(full / "store") >= kept
    remount(full, "size=4m")
    report = job.captured(full)
    assert job.result(full) == job.result(whole)
    assert report.rows <= 300 - kept


def test_a_full_disk_ends_a_generation(tmp_path, disk):
    """What had arrived and did not fit is asked for again, and nothing else."""
    with FaultyServer({CHAT: lambda body: say(body, padding="x" * 300)}) as server:
        full = disk(44)
        recipe = Recipe(full, server.url, 120, server={"concurrency": 4})
        done = recipe.run()
        assert done.exit_code == 1 and "Make room" in done.output, done.output
        kept = {row["id"] for row in recipe.rows()}
        assert 0 < len(kept) < 120
        remount(full, "size=4m")
        asked = len(server.answered)
        assert recipe.run().exit_code == 0
        assert len(server.answered) - asked == 120 - len(kept)
        assert len({row["id"] for row in recipe.rows()}) == 120


def test_a_full_disk_leaves_the_old_dataset(tmp_path, disk):
    source = write_trajectories(
        tmp_path / "t", (trajectory(n, content=os.urandom(600).hex()) for n in range(300))
    )
    full = disk(100)
    args = FilterArgs(output=str(full / "dataset"), split={"eval": 0})
    small = write_trajectories(tmp_path / "few", (trajectory(n) for n in range(5)))
    Filter(args, small).run()
    before = contents(full)
    with pytest.raises((OSError, DistillError)) as failed:
        Filter(args, source).run()
    assert "No space left" in str(failed.value)
    assert contents(full) == before
    remount(full, "size=4m")
    assert Filter(args, source).run()["rows"]["train"] == 300


def test_a_disk_that_may_only_be_read(tmp_path, disk):
    """What is there stays as it is, and each command says that it cannot write."""
    folder = disk(4096)
    job = Captures(small_model(tmp_path / "model"), small_rows(), k=8)
    job.captured(folder)
    with FaultyServer({CHAT: say}) as server:
        recipe = Recipe(tmp_path, server.url, 4)
        recipe.values["generate"]["output"] = str(folder / "out")
        before = contents(folder)
        remount(folder, "ro")
        with pytest.raises(DistillError, match=r"cannot be written.*Read-only"):
            job.captured(folder / "new")
        done = recipe.run()
        assert done.exit_code == 1 and "read-only" in done.output, done.output
        assert "Traceback" not in done.output and not server.requests
    assert contents(folder) == before


def test_a_folder_of_somebody_else(tmp_path, disk):
    """To a process without root's rights."""
    folder = disk(4096)
    job = Captures(small_model(tmp_path / "model"), small_rows(), k=8)
    job.captured(folder)
    before = contents(folder)
    folder.chmod(0o755)
    with without_root(), pytest.raises(DistillError, match=r"cannot be written.*Permission"):
        job.captured(folder / "new")
    assert contents(folder) == before


def contents(folder):
    return {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_a_server_that_goes_away(tmp_path):
    """In the midst of a generation: what arrived is kept, another server gives the rest."""
    with FaultyServer({CHAT: say}) as server:
        recipe = Recipe(tmp_path, server.url, 60, server={"concurrency": 4, "retries": 1})

        def gone(body):
            if len(server.answered) >= 20:
                server.closing.set()
                server.socket.close()
                return 500, {}
            return say(body)

        server.handlers[CHAT] = gone
        done = recipe.run()
        assert done.exit_code == 1 and "The same command" in done.output, done.output
    kept = {row["id"] for row in recipe.rows()}
    assert 16 <= len(kept) < 60
    with FaultyServer({CHAT: say}) as server:
        recipe.values["teacher"]["server"]["base_url"] = server.url
        assert recipe.run().exit_code == 0
        assert len(server.answered) == 60 - len(kept)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    path = tmp_path_factory.mktemp("store") / "store"
    return open_store(synthetic.write_store(path, "topk", rows=120, every=150))


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_loader_workers_read_the_same(store, method):
    here = [Records(store)[n] for n in range(len(Records(store)))]
    loader = DataLoader(
        Records(store), batch_size=None, num_workers=2, multiprocessing_context=method
    )
    assert all(torch.equal(a, b) for a, b in zip(here, loader, strict=True))


def test_a_dead_loader_worker_is_an_error(store):
    """And no hang, and the store can be read on. In a process of its own, for torch raises wherever
    the main thread is when a worker dies; at its first piece, for what it had sent would fail too,
    as a connection that was reset."""
    child = [sys.executable, "-m", "support.loading", str(store.path), "1"]
    tests = Path(__file__).parents[1]
    done = subprocess.run(child, cwd=tests, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    said = json.loads(done.stdout.splitlines()[-1])
    assert "exited unexpectedly" in said["error"]
    assert said["read_after"] == len(Records(store))


def test_a_hundred_epochs_cost_no_descriptor_and_no_memory(store):
    me, seen = psutil.Process(), []
    for epoch in range(100):
        for number in range(len(Records(store))):
            Records(store)[number]
        if epoch % 10 == 9:
            gc.collect()
            seen.append((me.num_fds(), me.memory_info().rss))
    print("descriptors and bytes at every tenth epoch:", json.dumps(seen))
    assert seen[-1][0] <= seen[0][0]
    assert seen[-1][1] <= seen[0][1] + (4 << 20)


@pytest.mark.slow
def test_a_hundred_epochs_of_workers(store):
    """Workers that come and go with every epoch."""
    me, seen, start = psutil.Process(), [], time.monotonic()
    before = me.children()
    for epoch in range(100):
        loader = DataLoader(
            Records(store), batch_size=None, num_workers=2, multiprocessing_context="fork"
        )
        assert sum(1 for _ in loader) == len(Records(store))
        del loader
        if epoch % 10 == 9:
            gc.collect()
            seen.append((me.num_fds(), me.memory_info().rss))
    print("descriptors and bytes at every tenth epoch:", json.dumps(seen), time.monotonic() - start)
    assert seen[-1][0] <= seen[1][0] and seen[-1][1] <= seen[1][1] + (4 << 20)
    assert me.children() == before
