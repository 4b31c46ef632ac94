"""The check of a store's files: done once where it is first opened, and remembered."""

import os
import shutil
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import pytest
from axolotl.utils.collators import DataCollatorForSeq2Seq
from support import synthetic
from support.forks import in_a_fork
from support.stores import store_features

from axolotl_distill.errors import StoreCorruptError
from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.store import checked, open_store, verify_store

RECORDS, ROWS = "teacher/shard-00000.safetensors", "data/shard-00000.parquet"


@pytest.fixture
def path(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return synthetic.write_store(tmp_path / "store", rows=20, every=60)


class TestTheCheckIsRemembered:
    def settle(self, path):
        """Files as old as those of a store that was not made this second."""
        time.sleep(checked.SETTLED_NS / 1e9 + 0.1)
        open_store(path)

    @pytest.fixture
    def reads(self, monkeypatch):
        """Names of the files that are hashed."""
        seen = []
        original = checked._check_file

        def counting(store, manifest, shard, name):
            seen.append(name)
            return original(store, manifest, shard, name)

        monkeypatch.setattr(checked, "_check_file", counting)
        return seen

    def test_by_file(self, path, reads, tmp_path):
        self.settle(path)
        assert len(reads) == 2 * len(open_store(path).manifest.shards)
        reads.clear()
        open_store(path)
        assert reads == []
        os.utime(path / ROWS)
        open_store(path)
        assert reads == [ROWS]
        reads.clear()
        verify_store(path)
        assert len(reads) > 2
        reads.clear()
        shutil.copytree(path, tmp_path / "copy")
        open_store(tmp_path / "copy")
        assert len(reads) > 2

    def test_a_change_that_keeps_size_and_time_is_seen(self, path):
        self.settle(path)
        about = (path / RECORDS).stat()
        data = bytearray((path / RECORDS).read_bytes())
        data[-3] ^= 1
        (path / RECORDS).write_bytes(data)
        os.utime(path / RECORDS, ns=(about.st_atime_ns, about.st_mtime_ns))
        with pytest.raises(StoreCorruptError, match="sha256"):
            open_store(path)

    def test_nowhere_to_remember(self, path, monkeypatch, tmp_path):
        (tmp_path / "file").write_text("")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
        self.settle(path)
        open_store(path)

    def test_a_broken_memory_is_no_memory(self, path, tmp_path):
        self.settle(path)
        for file in (tmp_path / "cache").rglob("*.json"):
            file.write_text("[3")
        checked._here.clear()
        (path / RECORDS).write_bytes(bytes((path / RECORDS).stat().st_size))
        with pytest.raises(StoreCorruptError, match="sha256"):
            open_store(path)

    def test_processes_that_open_it_at_once_wait_for_one(self, path, tmp_path, monkeypatch, capfd):
        """Every file is read once, whoever reads it, and all of them go on."""
        time.sleep(checked.SETTLED_NS / 1e9 + 0.1)
        original = checked._check_file
        log = os.open(tmp_path / "log", os.O_CREAT | os.O_APPEND | os.O_WRONLY)

        def slow(store, manifest, shard, name):
            os.write(log, f"{name}\n".encode())
            time.sleep(0.1)
            return original(store, manifest, shard, name)

        monkeypatch.setattr(checked, "_check_file", slow)
        children = [in_child(lambda: open_store(path).read(np.arange(5))) for _ in range(4)]
        assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
        read = (tmp_path / "log").read_text().split()
        assert sorted(read) == sorted({name for name in read}) and len(read) > 2
        assert "is being checked by another process; waiting" in capfd.readouterr().err


def in_child(work):
    """The process id of a fork that ends with 0 where `work` does not raise."""
    child = os.fork()
    if not child:
        try:
            in_a_fork()
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    return child


def test_a_store_that_may_only_be_read(tokenizer, monkeypatch):
    """Opened and looked up as training does, by a user who can write neither there nor anywhere
    that is remembered."""
    with tempfile.TemporaryDirectory() as place:
        monkeypatch.setenv("XDG_CACHE_HOME", f"{place}/cache")
        path = synthetic.write_store(Path(place) / "store", rows=20, every=60)
        files = [Path(place), path, *path.rglob("*")]
        for file in files:
            file.chmod(0o555 if file.is_dir() else 0o444)
        before = [file.stat().st_mtime_ns for file in files]

        def work():
            if os.getuid() == 0:
                os.setgroups([])
                os.setuid(65534)
            assert not any(os.access(file, os.W_OK) for file in files)
            collator = TeacherCollator(
                tokenizer,
                base_cls=DataCollatorForSeq2Seq,
                packed=False,
                stores=[open_store(path)],
                temperature=2.0,
            )
            batch = collator(store_features(tokenizer, path)[:3])
            assert (batch["teacher_entries"] != -1).any()

        assert os.waitpid(in_child(work), 0)[1] == 0
        assert [file.stat().st_mtime_ns for file in files] == before
