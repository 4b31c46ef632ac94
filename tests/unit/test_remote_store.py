"""Stores on a real S3 server on this machine: read through a bounded cache, pushed, pulled."""

import os
import shutil
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import fsspec
import numpy as np
import pytest
from support import synthetic
from support.cli import distill_here
from support.s3_server import s3_server

from axolotl_distill.disk import remote
from axolotl_distill.disk.cache import FileCache
from axolotl_distill.errors import RemoteError, StoreCorruptError, StoreError, StoreMissingError
from axolotl_distill.store import CachePlace, open_store, verify_store
from axolotl_distill.store.transfer import pull, push

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def server():
    with s3_server() as running:
        yield running


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    """Six shards or so."""
    return synthetic.write_store(tmp_path_factory.mktemp("local") / "store", every=100)


@pytest.fixture(scope="module")
def bucket(server):
    return server.make_bucket("stores")


@pytest.fixture(scope="module")
def url(bucket, local):
    push(open_store(local), f"{bucket}/shared")
    return f"{bucket}/shared"


@pytest.fixture
def own_url(bucket, local, request):
    """A copy that a test may spoil."""
    url = f"{bucket}/{request.node.name}"
    push(open_store(local), url)
    return url


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path):
    monkeypatch.setattr(remote, "PAUSE", 0.05)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))


def largest(store):
    return max(file.stat().st_size for file in (store / "teacher").iterdir())


def same(one, other, index):
    mine, theirs = one.read(index), other.read(index)
    return all((mine.columns[name] == theirs.columns[name]).all() for name in mine.columns)


def test_a_batch_is_that_of_the_local_store(tmp_path, local, url, tokenizer):
    """Byte for byte, out of the collator."""
    from axolotl.utils.collators import DataCollatorForSeq2Seq
    from support.stores import store_features

    from axolotl_distill.host.collator import TeacherCollator

    far = open_store(url, cache=CachePlace(tmp_path / "cache", largest(local)))
    batches = []
    for store in (open_store(local), far):
        collator = TeacherCollator(
            tokenizer,
            base_cls=DataCollatorForSeq2Seq,
            packed=False,
            stores=[store],
            temperature=2.0,
            return_tensors="pt",
        )
        rows = store_features(tokenizer, store.path)
        batches.append(collator([rows[at] for at in (30, 2, 17, 9, 25)]))
    assert batches[0].keys() == batches[1].keys() and "teacher_entries" in batches[0]
    for name, values in batches[0].items():
        assert values.numpy().tobytes() == batches[1][name].numpy().tobytes(), name
    assert far.cache.stalls.count > 1


def test_the_cache_is_bounded_and_used(tmp_path, local, url, monkeypatch):
    size = largest(local) * 2
    far, near = open_store(url, cache=CachePlace(tmp_path / "c", size)), open_store(local)
    index = np.random.default_rng(0).integers(0, near.num_records, 300)
    assert len(near.manifest.shards) > 4 and same(far, near, index)
    assert 0 < far.cache.used() <= size
    # All of it: no second fetch, and none after the mirror is opened again.
    roomy = open_store(url, cache=CachePlace(tmp_path / "roomy", 10**8))
    assert same(roomy, near, index) and roomy.cache.stalls.count == len(near.manifest.shards)
    again = open_store(roomy.path, cache=CachePlace(size=10**8))
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert same(again, near, index) and again.cache.stalls.count == 0
    assert str(again) == url


def test_a_shard_that_is_larger_than_the_cache(tmp_path, url):
    far = open_store(url, cache=CachePlace(tmp_path / "cache", 100))
    with pytest.raises(StoreError, match=r"shard-00000.* may hold 100\. Raise .*reshard"):
        far.read(np.arange(3))


READER = """
import sys, time
from pathlib import Path
import numpy as np
from axolotl_distill.store import CachePlace, open_store
url, local, cache, size, seed = sys.argv[1:6]
far, near = open_store(url, cache=CachePlace(Path(cache), int(size))), open_store(local)
rng = np.random.default_rng(int(seed))
print("ready", flush=True)
sys.stdin.readline()
most = 0
for _ in range(25):
    index = rng.integers(0, near.num_records, 20)
    a, b = far.read(index), near.read(index)
    assert all((a.columns[name] == b.columns[name]).all() for name in a.columns)
    most = max(most, far.cache.used())
assert most <= int(size), most
print(far.cache.stalls.count)
"""


def test_two_processes_share_a_cache_of_one_shard(tmp_path, local, url):
    """Each needs the room that the other has, again and again; both end, and read what is there."""
    command = [sys.executable, "-c", READER, url, str(local), tmp_path / "cache"]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    readers = [
        subprocess.Popen(
            [*command, str(largest(local)), str(seed)],
            env=env,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
        )
        for seed in (1, 2)
    ]
    for reader in readers:
        assert reader.stdout.readline() == "ready\n"
    for reader in readers:
        reader.stdin.write("go\n")
        reader.stdin.flush()
    stalls = [int(reader.communicate(timeout=200)[0]) for reader in readers]
    assert [reader.returncode for reader in readers] == [0, 0]
    assert min(stalls) > 10


def test_what_is_read_is_not_removed(tmp_path, local, url):
    """Who needs room waits for who reads."""
    far = open_store(url, cache=CachePlace(tmp_path / "cache", largest(local)))
    other = open_store(url, cache=CachePlace(tmp_path / "cache", largest(local)))
    fetched = threading.Event()
    thread = threading.Thread(target=lambda: (other.fetch(1), fetched.set()))
    with far.held(0) as arrays:
        before = {name: array.copy() for name, array in arrays.items()}
        thread.start()
        assert not fetched.wait(0.5)
        assert all((arrays[name] == before[name]).all() for name in before)
    assert fetched.wait(20)
    thread.join()


def test_what_a_killed_process_left_makes_room(tmp_path, local, url):
    far = open_store(url, cache=CachePlace(tmp_path / "cache", largest(local)))
    left = tmp_path / "cache" / "objects" / ("0" * 64 + ".part")
    left.write_bytes(bytes(largest(local)))
    far.fetch(0)
    assert not left.exists()


def test_a_changed_file_of_the_cache_is_fetched_again(tmp_path, local, url):
    far = open_store(url, cache=CachePlace(tmp_path / "cache", 10**8))
    index = np.arange(far.num_records)
    far.read(index)
    for file in (tmp_path / "cache" / "objects").iterdir():
        data = bytearray(file.read_bytes())
        data[-1] ^= 1
        file.write_bytes(data)
    assert same(far, open_store(local), index)


@pytest.mark.parametrize("name", ["teacher/shard-00001.safetensors", "data/shard-00001.parquet"])
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone"])
def test_damage_is_found_and_named(tmp_path, bucket, local, name, damage):
    url = f"{bucket}/{damage}-{name[:4]}"
    spoilt = tmp_path / "spoilt"
    shutil.copytree(local, spoilt)
    push(open_store(spoilt), url)
    data = bytearray((local / name).read_bytes())
    data[len(data) // 2] ^= 1
    files = fsspec.filesystem("s3")
    if damage == "gone":
        files.rm(f"{url}/{name}")
    else:
        files.pipe_file(f"{url}/{name}", bytes(data if damage == "flipped" else data[:-7]))
    kind = StoreMissingError if damage == "gone" else StoreCorruptError
    said = {"flipped": "sha256", "cut": r"bytes, the manifest says \d+: it was cut", "gone": "not"}
    with pytest.raises(kind, match=f"{url}/{name} .*{said[damage]}"):
        store = open_store(url, cache=CachePlace(tmp_path / "cache", 10**8))
        store.read(np.arange(store.num_records))
    whole = [file.name for file in (tmp_path / "cache" / "objects").iterdir()]
    assert not any(file.endswith(".part") for file in whole)


def test_a_server_that_dies_and_one_that_comes_back(tmp_path, local, monkeypatch):
    monkeypatch.setattr(remote, "BLOCK", 512)
    monkeypatch.setattr(remote, "AT_ONCE", 1)
    monkeypatch.setattr(remote, "TRIES", 2)
    with s3_server() as server:
        push(open_store(local), f"{server.make_bucket('mortal')}/store")
        far = open_store("s3://mortal/store", cache=CachePlace(tmp_path / "cache", 10**8))
        wanted = far._wanted(1)
        blocks = wanted.blocks()
        next(blocks)
        server.kill()
        with pytest.raises(RemoteError, match=r"s3://mortal/store/teacher/shard-00001.* 2 tries"):
            list(blocks)
        with pytest.raises(RemoteError, match="Is the network up"):
            far.fetch(1)
        assert not list((tmp_path / "cache" / "objects").iterdir())
        # It comes back while somebody waits.
        monkeypatch.setattr(remote, "TRIES", 200)

        def fetched():
            # Back, it is empty until all is pushed again, and says so.
            while not far.cache.used():
                with suppress(StoreMissingError):
                    far.fetch(1)

        waiting = threading.Thread(target=fetched)
        waiting.start()
        time.sleep(0.3)
        assert waiting.is_alive()
        server.start()
        push(open_store(local), f"{server.make_bucket('mortal')}/store")
        waiting.join(60)
        assert not waiting.is_alive() and far.cache.used() == wanted.size


def test_addresses_that_cannot_be_read(tmp_path, bucket, monkeypatch):
    place = CachePlace(tmp_path / "cache")
    with pytest.raises(StoreMissingError, match=r"s3://no-such-bucket/x.*no such bucket"):
        open_store("s3://no-such-bucket/x", cache=place)
    with pytest.raises(StoreMissingError, match=r"nothing is not a teacher store.*push"):
        open_store(f"{bucket}/nothing", cache=place)
    with pytest.raises(RemoteError, match="no file system is known for x3://"):
        open_store("x3://bucket/x", cache=place)
    with pytest.raises(RemoteError, match=r"reads smb:// is missing.*smbprotocol"):
        open_store("smb://host/share/x", cache=place)
    with pytest.raises(RemoteError, match="must not hold a password") as found:
        open_store("sftp://me:geheim123@host/x", cache=place)
    assert "geheim123" not in str(found.value)
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    fsspec.filesystem("s3").clear_instance_cache()
    with pytest.raises(RemoteError, match=r"permission denied.*AWS_ACCESS_KEY_ID and"):
        open_store(f"{bucket}/shared", cache=place)
    fsspec.filesystem("s3").clear_instance_cache()


def test_push_sends_once_and_the_manifest_last(tmp_path, bucket, local, monkeypatch):
    url = f"{bucket}/once"
    near = open_store(local)
    files = 2 * len(near.manifest.shards)
    put, sent = remote.RemoteFolder.put, []

    def stops(self, file, name):
        if len(sent) == 5:
            raise RemoteError("the line is cut")
        sent.append(name)
        put(self, file, name)

    monkeypatch.setattr(remote.RemoteFolder, "put", stops)
    with pytest.raises(RemoteError, match="is cut"):
        push(near, url)
    with pytest.raises(StoreMissingError, match="not a teacher store"):
        open_store(url, cache=CachePlace(tmp_path / "cache"))
    monkeypatch.setattr(remote.RemoteFolder, "put", put)
    blocks, read_back = remote.RemoteFolder.blocks, []
    monkeypatch.setattr(
        remote.RemoteFolder,
        "blocks",
        lambda self, name, size: (read_back.append(name), blocks(self, name, size))[1],
    )
    assert push(near, url) == {"sent": files - 5, "found": 5}
    assert read_back == [], "what was noted is not read back"
    # Without a note, by the hash of what is there; and what was changed since is sent again.
    fsspec.filesystem("s3").pipe_file(f"{url}/data/shard-00000.parquet", b"x")
    assert push(near, url) == {"sent": 1, "found": files - 1}
    assert len(read_back) == files
    assert verify_store(pull(url, tmp_path / "back").path).manifest == near.manifest


def test_hidden_states_go_along(tmp_path, bucket):
    """There, read through a cache as they are, and back."""
    near = open_store(synthetic.write_store(tmp_path / "near", "sampled+int8", every=100))
    push(near, f"{bucket}/hidden")
    far = open_store(f"{bucket}/hidden", cache=CachePlace(tmp_path / "cache"))
    index = np.arange(near.num_records)
    assert "hidden" in far.read(index).columns and same(near, far, index)
    back = verify_store(pull(f"{bucket}/hidden", tmp_path / "back").path)
    assert back.manifest == near.manifest and same(near, back, index)


def test_another_store_is_not_overwritten(tmp_path, local, own_url):
    other = synthetic.write_store(tmp_path / "other", "topk")
    with pytest.raises(StoreError, match="holds another store"):
        push(open_store(other), own_url)
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("years")
    with pytest.raises(StoreError, match="holds something else"):
        pull(own_url, tmp_path / "full")
    with pytest.raises(StoreError, match=r"thesis\.tex is a file"):
        pull(own_url, tmp_path / "full" / "thesis.tex")


PUSHER = """
import sys
from axolotl_distill.store import open_store
from axolotl_distill.store.transfer import pull, push
from pathlib import Path
act, store, url = sys.argv[1:4]
print("ready", flush=True)
push(open_store(store), url) if act == "push" else pull(url, Path(store))
"""


def test_killed_push_and_pull_go_on(tmp_path, bucket, local):
    url = f"{bucket}/killed"
    rng = np.random.default_rng()
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    for act, store in (("push", local), ("pull", tmp_path / "back")):
        command = [sys.executable, "-c", PUSHER, act, str(store), url]
        for kills in range(4):
            child = subprocess.Popen(
                command, env=env, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
            )
            child.stdout.readline()
            if kills < 3:
                time.sleep(rng.uniform(0.2, 1.2))
                child.kill()
            if child.wait() == 0:
                break
            if act == "pull":
                assert not store.exists()
        assert child.returncode == 0
    assert verify_store(tmp_path / "back").manifest == open_store(local).manifest


def test_the_commands(tmp_path, bucket, local, url, monkeypatch):
    done = distill_here("store", "push", local, f"{bucket}/by-command", "--json")
    assert '"found": 0' in done.stdout
    done = distill_here("store", "pull", url, tmp_path / "back")
    assert "34 rows" in done.stdout
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path / "hf"))
    for command in (("inspect", url, "--records", 0), ("verify", url)):
        assert distill_here(*command).returncode == 0
    done = distill_here("store", "merge", url, "--output", f"{bucket}/x", check=False)
    assert done.returncode == 1 and "local folder is needed" in done.stderr


def test_a_default_cache_takes_half_of_what_is_free(tmp_path):
    free = shutil.disk_usage(tmp_path).free
    assert 0.4 * free < FileCache(tmp_path / "cache", None).size < 0.6 * free
