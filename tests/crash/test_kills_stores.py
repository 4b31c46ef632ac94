"""Kills of what moves stores: merge, split, push and pull, and a capture to an address, the latter
three with an S3 server on this machine.

    CRASH_KILLS=200 CRASH_SEED=0 pytest -m slow -s tests/crash/test_kills_stores.py
"""

import os

import pytest
from crash.test_kills import KILLS, SEED, Reshards, command, few_and_many, report
from support.captures import MadeUpAway, digest, rows_of
from support.crash import kill_again_and_again
from support.s3_server import s3_server
from support.synthetic import write_store

from axolotl_distill.disk.remote import RemoteFolder
from axolotl_distill.store import Manifest, open_store, verify_store
from axolotl_distill.store.rearrange import split
from axolotl_distill.store.transfer import PULLING, pull, push

many = pytest.mark.parametrize("kills", [pytest.param(KILLS, marks=pytest.mark.slow)], ids=["many"])


@pytest.fixture(scope="module")
def bucket():
    with s3_server() as server:
        yield server.make_bucket("kills")


@pytest.fixture
def source(tmp_path):
    return write_store(tmp_path / "source", "topk", rows=300, every=300)


class Merges(Reshards):
    """Three stores into one."""

    name = "store merge"

    def __init__(self, sources):
        self.sources = sources

    def run(self, folder):
        command("store", "merge", *self.sources, "--output", folder / "store")


@many
def test_merge(tmp_path, source, kills):
    """No row that was committed is lost or changes."""
    split(open_store(source), tmp_path / "parts", 3)
    job = Merges(sorted((tmp_path / "parts").iterdir()))
    report(job, kill_again_and_again(job, tmp_path / "kills", kills, SEED))


class Splits(Reshards):
    """One store into three."""

    name = "store split"

    def run(self, folder):
        command("store", "split", self.source, "--parts", 3, "--output", folder / "store")

    def kept(self, folder):
        found = {}
        for part in sorted((folder / "store").glob("part-*/manifest.json")):
            store = open_store(part.parent, allow_incomplete=True, check_again=True)
            found |= {(part.parent.name, row): value for row, value in rows_of(store).items()}
        return found

    def result(self, folder):
        parts = sorted((folder / "store").iterdir())
        assert [part.name for part in parts] == [f"part-0000{number}" for number in range(3)]
        stores = [verify_store(part) for part in parts]
        records = [
            [digest(store.path / shard.records_file) for shard in store.manifest.shards]
            for store in stores
        ]
        return [rows_of(store) for store in stores], records


@many
def test_split(tmp_path, source, kills):
    """No row that was committed is lost or changes."""
    report(Splits(source), kill_again_and_again(Splits(source), tmp_path / "k", kills, SEED))


class Pushes(Reshards):
    """To an address; what was sent is noted below the folder."""

    name = "store push"

    def __init__(self, source, bucket):
        self.source, self.bucket = source, bucket

    def url(self, folder):
        return f"{self.bucket}/{folder.parent.name}-{folder.name}"

    def run(self, folder):
        os.environ["XDG_CACHE_HOME"] = str(folder / "cache")
        command("store", "push", self.source, self.url(folder))

    def kept(self, folder):
        """Every object, by what it is known again: nothing that arrived is sent anew. The card and
        the manifest may be."""
        found = RemoteFolder(self.url(folder)).listing()
        if "manifest.json" in found:
            assert len(found) == 2 + 2 * len(Manifest.load(self.source).shards)
        return {name: (about["ETag"], about["size"]) for name, about in found.items()}

    def result(self, folder):
        pulled = pull(self.url(folder), folder / "back")
        assert pulled.manifest == Manifest.load(self.source)
        return rows_of(pulled)


@many
def test_push(tmp_path, source, bucket, kills):
    """What arrived stays; the manifest is there when all else is."""
    job = Pushes(source, bucket)
    report(job, kill_again_and_again(job, tmp_path / f"push-{kills}", kills, SEED))


class Pulls(Reshards):
    """From an address: a whole store, or none."""

    name = "store pull"

    def __init__(self, url):
        self.url = url

    def run(self, folder):
        command("store", "pull", self.url, folder / "store")

    def kept(self, folder):
        """Files, of the store or of what is to be one."""
        if (folder / "store").exists():
            verify_store(folder / "store")
        found = {}
        for place in (folder / ("store" + PULLING), folder / "store"):
            for file in [*place.glob("data/*"), *place.glob("teacher/*")]:
                if file.suffix != ".tmp":
                    found[file.name] = digest(file)
        return found

    def result(self, folder):
        assert {entry.name for entry in folder.iterdir()} == {"store"}
        names = {entry.name for entry in (folder / "store").iterdir()}
        assert names == {"data", "teacher", "manifest.json", "README.md"}
        return super().result(folder)


@many
def test_pull(tmp_path, source, bucket, kills):
    """The store is whole or not there, and no file that came is lost."""
    url = f"{bucket}/pull-{kills}"
    push(open_store(source), url)
    report(Pulls(url), kill_again_and_again(Pulls(url), tmp_path / "kills", kills, SEED))


@few_and_many
def test_capture_to_an_address(tmp_path, bucket, kills):
    """No row is lost or there twice, here or there; the end is that of a run nobody disturbed."""
    job = MadeUpAway(f"{bucket}/captures-{kills}", 120)
    report(job, kill_again_and_again(job, tmp_path / "kills", kills, SEED))
