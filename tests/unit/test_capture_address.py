"""A capture that writes straight to an address, on a real S3 server on this machine."""

import shutil
import threading
import time
from pathlib import Path

import fsspec
import pytest
from support.captures import MadeUp, MadeUpAway, there
from support.cli import distill_here
from support.s3_server import s3_server

from axolotl_distill.commands.kept import keeps_what_is_written
from axolotl_distill.config.distill import parse_distill
from axolotl_distill.disk import remote
from axolotl_distill.disk.remote import RemoteFolder
from axolotl_distill.errors import (
    CaptureError,
    ConfigError,
    RemoteError,
    StoreError,
    StoreMissingError,
)
from axolotl_distill.store import CachePlace, open_store
from axolotl_distill.store.outlet import Outlet


@pytest.fixture(scope="module")
def bucket():
    with s3_server() as server:
        yield server.make_bucket("captures")


@pytest.fixture
def job(bucket, request):
    return MadeUpAway(f"{bucket}/{request.node.name}")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "one").mkdir()
    return tmp_path / "one"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """(rows, hashes of records) of a capture to a folder."""
    near = MadeUp()
    near.captured(at := tmp_path_factory.mktemp("near"))
    return near.result(at)


@pytest.fixture(autouse=True)
def puts(monkeypatch):
    """Names of what was sent, in order; what `stops` holds ends it before the file of that
    number."""
    monkeypatch.setattr(remote, "PAUSE", 0.01)
    put, names = RemoteFolder.put, Puts()

    def spied(self, file, name):
        if len(names) in names.stops:
            raise names.stops.pop(len(names))
        names.seen(Path(file))
        names.append(name)
        put(self, file, name)

    monkeypatch.setattr(RemoteFolder, "put", spied)
    return names


class Puts(list):
    def __init__(self):
        self.stops, self.most = {}, 0

    def seen(self, file):
        if file.parent.name == "teacher":
            self.most = max(self.most, len(list(file.parent.glob("*.safetensors*"))))

    @property
    def shards(self):
        return [name for name in self if "shard-" in name]


def test_the_same_store_as_in_a_folder(job, folder, whole, puts):
    """Every file is sent once, the manifest last; few shards lie here at a time."""
    job.captured(folder)
    assert job.result(folder) == whole
    assert len(puts.shards) == len({*puts.shards}) == 2 * len(whole[1]) > 10
    assert puts[0] == puts[-1] == "manifest.json" and puts[-2] == "README.md"
    assert 0 < puts.most <= job.shards
    # Again: nothing to do, and no teacher is asked.
    del puts[:]

    def no_teacher(*_):
        raise AssertionError("a complete store needs no teacher")

    job.captured(folder, no_teacher)
    assert puts == [] and job.result(folder) == whole
    assert job.outlet(folder).finished().complete


@pytest.mark.parametrize("at", [2, 7, 12])
def test_what_stops_it_is_gone_on_with(job, folder, whole, puts, at):
    puts.stops[at] = RemoteError("the line is cut")
    with pytest.raises(RemoteError, match="is cut"):
        job.captured(folder)
    assert there(job.output(folder)).manifest.complete is False
    report = job.captured(folder)
    assert job.result(folder) == whole
    assert len(puts.shards) == len({*puts.shards}), "what arrived is not sent again"
    assert report.rows < len(whole[0])


def test_goes_on_on_another_machine(job, folder, whole, puts):
    """The spool is lost with its machine. What the address has is not asked of the teacher."""
    puts.stops[12] = RemoteError("the line is cut")
    with pytest.raises(RemoteError):
        job.captured(folder)
    far = there(job.output(folder)).manifest
    assert len(far.shards) > 2 and not far.complete
    shutil.rmtree(folder / "spool")
    report = job.captured(folder)
    assert job.result(folder) == whole
    assert report.rows == len(whole[0]) - far.num_rows


def test_a_reader_sees_that_it_is_not_complete(job, folder, puts, tmp_path, monkeypatch):
    puts.stops[9] = RemoteError("the line is cut")
    with pytest.raises(RemoteError):
        job.captured(folder)
    url = job.output(folder)
    with pytest.raises(StoreError, match="not complete: it is being captured"):
        open_store(url, cache=CachePlace(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    shown = distill_here("inspect", url, "--records", 0)
    assert "complete                False" in shown.stdout
    done = distill_here("verify", url, check=False)
    assert done.returncode == 1 and "is being captured" in done.stderr
    job.captured(folder)
    assert distill_here("verify", url).returncode == 0


def test_nothing_stays_of_a_capture_without_a_row(job, folder):
    def refused(*_):
        raise ConfigError("no such teacher")

    with pytest.raises(ConfigError):
        job.captured(folder, refused)
    assert RemoteFolder(job.output(folder)).listing() == {}
    assert not (folder / "spool" / "manifest.json").exists()


@pytest.mark.slow
def test_a_server_that_dies_and_comes_back(folder, whole, monkeypatch):
    """What it had is lost with it, which is said."""
    with s3_server() as server:
        job = MadeUpAway(server.make_bucket("mortal"))
        put, seen = RemoteFolder.put, []
        monkeypatch.setattr("axolotl_distill.store.outlet.TRIES", 2)
        # What the client tries by itself besides takes half a minute.
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        monkeypatch.setattr("s3fs.S3FileSystem.retries", 1)
        fsspec.filesystem("s3").clear_instance_cache()

        def dies(self, file, name):
            seen.append(name)
            if len(seen) == 6:
                server.kill()
            put(self, file, name)

        monkeypatch.setattr(RemoteFolder, "put", dies)
        with pytest.raises(RemoteError, match=r"cannot be reached; after 2 tries.*goes on"):
            job.captured(folder)
        with pytest.raises(RemoteError, match="cannot be reached"):
            job.captured(folder)
        server.start()
        with pytest.raises(StoreMissingError, match=r"was sent and is gone.*to begin anew"):
            job.captured(folder)
        shutil.rmtree(folder / "spool")
        with pytest.raises(StoreMissingError, match="no such bucket"):
            job.captured(folder)
        server.make_bucket("mortal")
        job.captured(folder)
        assert job.result(folder) == whole


def test_what_lies_there_already(job, folder):
    url = job.output(folder)
    files = fsspec.filesystem("s3")
    files.pipe_file(f"{url}/thesis.tex", b"years")
    for look in (lambda: job.captured(folder), lambda: _before(job, folder)):
        with pytest.raises(StoreError, match=r"holds other files \(thesis\.tex\)"):
            look()
    files.rm_file(f"{url}/thesis.tex")
    job.captured(folder)
    other = MadeUpAway(job.bucket, 70)
    with pytest.raises(StoreError, match=rf"{url} was captured with another `source`"):
        other.captured(folder)
    assert not (folder / "spool" / "manifest.json").exists()
    with pytest.raises(StoreMissingError, match="no such bucket"):
        MadeUpAway("s3://no-such-bucket").captured(folder)
    assert not files.exists("s3://no-such-bucket"), "nobody asked for a bucket"


def _before(job, folder):
    with keeps_what_is_written(job.output(folder), job.outlet(folder)):
        raise AssertionError("it was seen too late")


def test_two_captures_to_one_address(job, folder, tmp_path, puts):
    """The second machine takes it before the first has sent a shard: the first gives up."""
    begun, taken = threading.Event(), threading.Event()

    def waits(*_):
        begun.set()
        assert taken.wait(30)
        return job.opened()

    faults = []

    def first():
        try:
            job.captured(folder, waits)
        except StoreError as error:
            faults.append(str(error))

    thread = threading.Thread(target=first)
    thread.start()
    assert begun.wait(30)
    second = MadeUpAway(job.bucket)
    (tmp_path / "two").mkdir()
    second.outlet = lambda _: Outlet(job.output(folder), tmp_path / "two" / "spool", 2)
    second.output = lambda _: job.output(folder)
    second.captured(tmp_path / "two")
    taken.set()
    thread.join(60)
    assert len(faults) == 1 and "is being written by another capture" in faults[0]


def test_what_arrives_otherwise_is_not_removed_here(folder, whole, monkeypatch):
    """A system that tells no md5: files are read back."""
    url = "memory://captures/otherwise"
    job = MadeUpAway(url)
    put = RemoteFolder.put

    def spoils(self, file, name):
        put(self, file, name)
        if name == "teacher/shard-00002.safetensors":
            files, path = self._files()
            data = bytearray(files.cat_file(f"{path}/{name}"))
            data[-1] ^= 1
            files.pipe_file(f"{path}/{name}", bytes(data))

    monkeypatch.setattr(RemoteFolder, "put", spoils)
    with pytest.raises(RemoteError, match=r"shard-00002\.saf.*has another content"):
        job.captured(folder)
    assert (folder / "spool" / "teacher" / "shard-00002.safetensors").exists()
    monkeypatch.setattr(RemoteFolder, "put", put)
    job.captured(folder)
    assert job.result(folder) == whole


def test_what_is_changed_there_is_seen_before_the_end(job, folder, puts):
    puts.stops[9] = RemoteError("the line is cut")
    with pytest.raises(RemoteError):
        job.captured(folder)
    name = "teacher/shard-00000.safetensors"
    files = fsspec.filesystem("s3")
    data = bytearray(files.cat_file(f"{job.output(folder)}/{name}"))
    data[-1] ^= 1
    files.pipe_file(f"{job.output(folder)}/{name}", bytes(data))
    with pytest.raises(StoreError, match=rf"{name} is not as it was sent"):
        job.captured(folder)
    assert there(job.output(folder)).manifest.complete is False


def test_a_slow_address_is_waited_for(job, folder, whole, puts, monkeypatch, caplog):
    put = RemoteFolder.put

    def slow(self, file, name):
        time.sleep(0.05)
        put(self, file, name)

    monkeypatch.setattr(RemoteFolder, "put", slow)
    monkeypatch.setattr("axolotl_distill.store.outlet.SHOWN_AFTER", 0.02)
    job.shards = 1
    job.captured(folder)
    assert puts.most == 1 and job.result(folder) == whole
    assert "`distill.capture.spool.shards`" in caplog.text


def test_keys():
    capture = {"teacher": "x", "output": "s3://bucket/x", "spool": {"shards": 2}}
    assert parse_distill({"capture": capture}).capture.spool.shards == 2
    with pytest.raises(ConfigError, match=r"`spool` is read where `output` is an address"):
        parse_distill({"capture": {**capture, "output": "./folder"}})
    with pytest.raises(ConfigError, match=r"spool.shards`.*greater than or equal to 1"):
        parse_distill({"capture": {**capture, "spool": {"shards": 0}}})


def test_an_import_says_that_it_writes_to_folders():
    said = pytest.raises(CaptureError, match="an import writes to a local folder")
    with said, keeps_what_is_written("s3://bucket/x"):
        pass
