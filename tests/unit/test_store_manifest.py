"""A manifest is believed only where it is as it was written and agrees with itself."""

import copy
import hashlib
import json
import random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support import synthetic

from axolotl_distill.errors import StoreCorruptError, StoreError
from axolotl_distill.store import open_store, verify_store
from axolotl_distill.store.sealed import seal_of, strict_json


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return synthetic.write_store(tmp_path_factory.mktemp("whole") / "store", rows=20, every=60)


@pytest.fixture
def written(path):
    """The manifest's text; put back when the test is over."""
    text = (path / "manifest.json").read_text()
    yield json.loads(text)
    (path / "manifest.json").write_text(text)


def last_shard_gone(values):
    values["shards"].pop()


def shard_twice(values):
    values["shards"].append(copy.deepcopy(values["shards"][-1]))


def shards_swapped(values):
    values["shards"].reverse()


def no_files(values):
    values["shards"][0]["files"] = {}


def escaping_name(values):
    values["shards"][0]["name"] = "../../x"


def escaping_file(values):
    files = values["shards"][0]["files"]
    files["../../x.parquet"] = files.pop("data/shard-00000.parquet")


def third_file(values):
    values["shards"][0]["files"]["data/more.parquet"] = {"bytes": 1, "sha256": "0" * 64}


def key(name, value):
    def change(values):
        at = values
        *path, last = [int(part) if part.isdigit() else part for part in name.split(" ")]
        for part in path:
            at = at[part]
        at[last] = value

    change.__name__ = f"{name}={value!r}"
    return change


CHANGES = [
    (last_shard_gone, "`complete` is true"),
    (shard_twice, "named shard-0000"),
    (shards_swapped, "named shard-0000"),
    (no_files, r"files are \[\]"),
    (escaping_name, "`shards.0.name`"),
    (escaping_file, "files are"),
    (third_file, "files are"),
    (key("complete", "no"), "`complete`"),
    (key("complete", 1), "`complete`"),
    (key("temperatures", [2.0, 1.0]), "ascending"),
    (key("temperatures", [2.0, 4.0]), "without 1.0"),
    (key("temperatures", [1.0, 1.0]), "ascending"),
    (key("temperatures", [1.0, -2.0]), "temperatures.1"),
    (key("temperatures", "1.0"), "temperatures"),
    (key("tail_estimated", [3.0]), "tail_estimated"),
    (key("vocab_size", "5000"), "vocab_size"),
    (key("vocab_size", 2**21), "vocab_size"),
    (key("vocab_size", 0), "vocab_size"),
    (key("vocab_size", 5000.0), "vocab_size"),
    (key("id_bits", 14), "id_bits"),
    (key("payloads", [{"kind": "topk"}]), "payloads.0.k"),
    (key("payloads", [{"kind": "magic"}]), "payloads.0.*'magic'.*topk"),
    (key("payloads", [{"kind": ["topk"], "k": 3}]), "payloads.0"),
    (key("payloads", [{"k": 3}]), "payloads.0"),
    (key("payloads", ["nucleus"]), "payloads.0"),
    (key("payloads", "nucleus"), "payloads"),
    (key("payloads", {"kind": "topk", "k": 3}), "payloads"),
    (key("payloads", []), "payloads"),
    (key("payloads", [{"kind": "topk", "k": 3}] * 2), "two of them have a column `entries`"),
    (key("payloads 0 p", 1.5), "payloads.0.p"),
    (key("payloads 0 max_k", True), "payloads.0.max_k"),
    (key("payloads 0 more", 1), "payloads.0.more"),
    (key("uid", "../x"), "uid"),
    (key("uid", None), "uid"),
    (key("created", "<script>"), "created"),
    (key("unknown", 1), "unknown"),
    (key("teacher", {}), "teacher.name"),
    (key("tokenizer", []), "tokenizer"),
    (key("source num_rows", 21), "`complete` is true"),
    (key("source num_rows", 3), "cover"),
    (key("source supervised", 1), "cover"),
    (key("shards", None), "shards"),
    (key("shards", {}), "shards"),
    (key("shards 0", 3), "shards.0"),
    (key("shards 0 rows", -1), "shards.0.rows"),
    (key("shards 0 rows", 10**6), "rows of the source"),
    (key("shards 0 records", 10**30), "shards.0.records"),
    (key("shards 0 entries", 1), "entries in"),
    (key("shards 0 first_record", 1), "first_record"),
    (key("shards 1 source_start", 0), "source_start"),
    (key("shards 0 files data/shard-00000.parquet", {}), "files"),
    (key("shards 0 files data/shard-00000.parquet bytes", "9"), "bytes"),
    (key("shards 0 files data/shard-00000.parquet sha256", "../x"), "sha256"),
    (key("format", "other"), "format"),
    (key("version", True), "version"),
    (key("version", "1"), "version"),
]


@pytest.mark.parametrize("change, said", CHANGES, ids=lambda v: getattr(v, "__name__", ""))
def test_a_contradiction_is_named(path, written, change, said):
    """Whoever wrote it sealed it: the fault itself is named, and what to do."""
    synthetic.edit_manifest(path, change)
    with pytest.raises(StoreCorruptError, match=rf"manifest.json.*{said}.*[Cc]opy"):
        open_store(path)


@pytest.mark.parametrize("change", [key("temperatures", [1.0, 3.0]), key("teacher name", "other")])
def test_a_change_that_makes_sense_breaks_the_seal(path, written, change):
    synthetic.edit_manifest(path, change, seal=False)
    with pytest.raises(StoreCorruptError, match="its seal does not fit"):
        open_store(path)


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b"3",
        b"null",
        b"[" * 200_000,
        b'{"a":' * 100_000,
        b'{"format": "axolotl-distill-store", "version": 1e999}',
        b'{"format": "axolotl-distill-store", "version": NaN}',
        b'{"format": "axolotl-distill-store", "format": "axolotl-distill-store"}',
        b'{"format": "axolotl-distill-store", "version": ' + b"9" * 5000 + b"}",
    ],
    ids=range(11),
)
def test_what_is_no_manifest_at_all(path, written, text):
    (path / "manifest.json").write_bytes(text)
    with pytest.raises(
        StoreCorruptError, match=r"manifest.json is not a manifest as it was written"
    ):
        open_store(path)


def test_json_says_one_thing_only():
    with pytest.raises(ValueError, match="'a' is there twice"):
        strict_json(b'{"b": {"a": 1, "a": 2}}')
    assert strict_json(b'{"a": [1, 2.5, null]}') == {"a": [1, 2.5, None]}


def test_a_seal_is_what_the_format_says():
    values = {"b": "é", "a": [1, 2.5], "seal": "not counted"}
    assert seal_of(values) == hashlib.sha256(b'{"a":[1,2.5],"b":"\\u00e9"}').hexdigest()
    assert seal_of(values, "x") == hashlib.sha256(b'x{"a":[1,2.5],"b":"\\u00e9"}').hexdigest()


ANY = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


def places(value, at=()):
    """The path of every value in a JSON document."""
    yield at
    if isinstance(value, (dict, list)):
        for name, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*at, name))


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data(), value=ANY, how=st.sampled_from(["replace", "remove", "repeat"]))
def test_any_change_anywhere_is_refused_or_harmless(path, data, value, how):
    """Sealed or not, nothing but our own errors; what is taken reads as what was stored."""
    text = (path / "manifest.json").read_text()
    values = json.loads(text)
    before = copy.deepcopy(values)
    *folder, last = data.draw(st.sampled_from([p for p in places(values) if p]))
    at = values
    for part in folder:
        at = at[part]
    if how == "remove":
        del at[last]
    elif how == "repeat" and isinstance(at, list):
        at.insert(last, at[last])
    else:
        at[last] = value
    sealed = data.draw(st.booleans())
    if sealed:
        values["seal"] = seal_of(values)
    try:
        (path / "manifest.json").write_text(json.dumps(values))
        verify_store(path)
        described = ("tokenizer", "teacher", "source", "terms", "created", "generator", "seal")
        assert sealed or values == before
        may_differ = {*described, "sequence_len", "payloads", "temperatures", "tail_estimated"}
        assert {k: v for k, v in values.items() if k not in may_differ} == {
            k: v for k, v in before.items() if k not in may_differ
        }
    except StoreError:
        assert values != before
    finally:
        (path / "manifest.json").write_text(text)


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 2**32))
def test_any_flipped_byte_of_the_manifest_is_seen(path, seed):
    data = (path / "manifest.json").read_bytes()
    rng = random.Random(seed)
    changed = bytearray(data)
    place = rng.randrange(len(data))
    changed[place] ^= 1 << rng.randrange(8)
    try:
        same = json.loads(changed) == json.loads(data)
    except ValueError:
        same = False
    try:
        (path / "manifest.json").write_bytes(changed)
        if same:
            open_store(path)
        else:
            with pytest.raises(StoreError):
                open_store(path)
    finally:
        (path / "manifest.json").write_bytes(data)
