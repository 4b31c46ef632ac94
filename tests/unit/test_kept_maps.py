"""What two vocabularies say of each other is found out once, whoever writes it and whatever became
of the file."""

import threading

import numpy as np
import pytest
from support.tokenizers import sentencepiece
from tokenizers import pre_tokenizers
from transformers import AutoTokenizer

from axolotl_distill.align import Pair, Pieces
from axolotl_distill.align.kept import folder, kept
from axolotl_distill.align.methods import METHODS


@pytest.fixture(scope="module")
def sides(smollm2_dir):
    return Pieces(AutoTokenizer.from_pretrained(smollm2_dir)), Pieces(sentencepiece())


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def never():
    raise AssertionError("it is on the disk")


def any_(arrays):
    return True


def said(pair):
    return pair.firsts, pair.in_parts, pair.goes_on, pair.expected_open, METHODS["min_ed"](pair)


def test_from_the_disk_it_is_the_same(sides, monkeypatch):
    first = said(Pair(*sides))
    files = sorted(path.name.partition("-")[0] for path in folder().iterdir())
    assert files == ["cuts", "min_ed", "parts"]
    with monkeypatch.context() as patched:
        patched.setattr(Pair, "_found_cuts", never)
        patched.setattr(Pair, "_found_in_parts", never)
        again = said(Pair(*sides))
    for one, other in zip(first[:-1], again[:-1], strict=True):
        assert (one == other).all()
    assert (first[-1].targets == again[-1].targets).all()


def halved(data):
    return data[: len(data) // 2]


def flipped(data):
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 0xFF]) + data[at + 1 :]


@pytest.mark.parametrize(
    "damage", [halved, flipped, lambda _: b"", lambda _: b"no zip file at all"]
)
def test_what_is_damaged_is_said_and_made_anew(sides, caplog, damage):
    right = (np.arange(5000), np.arange(7))
    for attempt in range(2):
        made = kept("x", *sides, lambda: right, any_)
        assert all((a == b).all() for a, b in zip(made, right, strict=True))
        assert ("made anew" in caplog.text) is bool(attempt)
        (path,) = folder().iterdir()
        path.write_bytes(damage(path.read_bytes()))
    kept("x", *sides, lambda: right, any_)
    assert kept("x", *sides, never, any_)[0].tolist() == right[0].tolist()


def test_arrays_of_another_pair_are_not_believed(sides, caplog):
    pair = Pair(*sides)
    firsts = pair.firsts
    (path,) = folder().glob("cuts-*")
    with np.load(path) as file:
        starts, flat = file["arr_0"], file["arr_1"]
    np.savez(path, starts, flat + len(pair.student))
    assert (Pair(*sides).firsts == firsts).all()
    assert "of other vocabularies" in caplog.text


def test_many_write_at_once(sides):
    right = np.arange(200_000)
    found = []

    def work():
        for _ in range(10):
            (array,) = kept("y", *sides, lambda: (right,), any_)
            found.append((array == right).all())
            for path in folder().glob("y-*.npz"):
                path.unlink(missing_ok=True)

    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(found) == 60 and all(found)
    assert not [path for path in folder().iterdir() if path.suffix != ".npz"]


def test_a_folder_that_takes_nothing(sides, caplog, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("no folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert kept("z", *sides, lambda: (np.arange(3),), any_)[0].tolist() == [0, 1, 2]
    assert "is not kept" in caplog.text


def test_one_vocabulary_cut_otherwise_is_another(sides, smollm2_dir):
    """Digits one by one or in one piece: ids and tokens are the same, how text is cut is not."""
    other = AutoTokenizer.from_pretrained(smollm2_dir)
    other.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    theirs = Pieces(other)
    assert theirs.fingerprint == sides[0].fingerprint and theirs.digest != sides[0].digest
