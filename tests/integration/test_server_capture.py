"""The store that a server's teacher gives is the one that the same model gives in this process."""

import math
import random

import numpy as np
import pytest
import torch
from support.faulty_server import FaultyServer
from support.model_server import ModelServer
from support.stores import random_rows
from support.synthetic import about_rows, manifest
from transformers import AutoTokenizer

from axolotl_distill.capture import Capture
from axolotl_distill.capture.graded import GradedSource
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import CaptureError, ServerError, TokenizerMismatchError
from axolotl_distill.store import open_store, verify_store
from axolotl_distill.store.encoding import decode_logprobs, decode_tail
from axolotl_distill.teachers.hf import HFTeacher
from axolotl_distill.teachers.server import ServerTeacher

pytestmark = pytest.mark.axolotl

K = 12
COMMON = {"output": "-", "temperatures": [1.0, 2.0]}
LOCAL = {"k": K, **COMMON}


@pytest.fixture(scope="module")
def model(tiny_model):
    return tiny_model()


@pytest.fixture(scope="module")
def rows(model):
    return random_rows(model.tokenizer, [25, 3, 40, 9, 31, 60, 12, 33, 18, 27, 50, 8], seed=5)


@pytest.fixture(scope="module")
def local(tmp_path_factory, tiny_llama_dir, model, rows):
    """The store of the model in this process, without a server."""
    teacher = HFTeacher(
        TeacherArgs(model=str(tiny_llama_dir), dtype="float32"), vocab_size=len(model.tokenizer)
    )
    args = CaptureArgs(teacher="-", **LOCAL)
    return fill(
        tmp_path_factory.mktemp("local") / "store", rows, GradedSource(teacher, args), model
    )


def fill(path, rows, source, model, payload=None):
    header = manifest(
        "topk",
        vocab_size=len(model.tokenizer),
        payloads=[payload or {"kind": "topk", "k": K}],
        source=about_rows(rows),
    )
    with Capture(path, header, rows, model.tokenizer.decode, shard_records=100_000) as capture:
        capture(source)
    return verify_store(path)


def server_args(url, engine="vllm", **changes):
    server = {"base_url": url, "engine": engine, "retries": 4, "timeout": 20.0}
    return CaptureArgs(
        teacher={"model": "teacher", "server": server},
        **{**(COMMON if "method" in changes else LOCAL), **changes},
    )


def from_server(
    path, rows, model, engine="vllm", faults=lambda *_: None, payload=None, **behaviour
):
    serving = ModelServer(model, model.tokenizer, **behaviour)
    changes = {} if payload is None else {"method": payload["kind"], "p": payload["p"], "max_k": 30}
    with FaultyServer(serving.handlers, faults=faults) as server:
        args = server_args(server.url, engine, **changes)
        with ServerTeacher(args.teacher, vocab_size=len(model.tokenizer)) as teacher:
            return fill(path, rows, GradedSource(teacher, args), model, payload)


def assert_same(seen, expected, least=None):
    """Same rows, positions and ids; log-probabilities and T=1 tails to rounding."""
    vocab_size = expected.manifest.vocab_size
    assert seen.num_records == expected.num_records
    index = np.arange(expected.num_records)
    found, truth = seen.read(index), expected.read(index)
    ids, logprobs = decode_logprobs(found.entries, vocab_size)
    true_ids, true_logprobs = decode_logprobs(truth.entries, vocab_size)
    lengths = (ids >= 0).sum(1)
    if least is None:
        assert (lengths == K).all()
    else:
        assert lengths.min() == least and lengths.max() == K
    for place, length in enumerate(lengths):
        assert ids[place, :length].tolist() == true_ids[place, :length].tolist()
        assert logprobs[place, :length] == pytest.approx(true_logprobs[place, :length], abs=1e-3)
        # What a short row lacks is in its tail.
        lacking = np.exp(true_logprobs[place, length:].astype(np.float64)).sum()
        tail = np.exp(decode_tail(truth.tail[place, 0])) + lacking
        assert np.exp(decode_tail(found.tail[place, 0])) == pytest.approx(tail, rel=2e-3, abs=2e-5)
    assert np.isfinite(decode_tail(found.tail)).all()


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_same_store_as_in_this_process(tmp_path, model, rows, local, engine):
    """Answers overtake one another; most rows of vLLM hold K + 1 entries."""
    assert_same(from_server(tmp_path / "store", rows, model, engine, late=0.05), local)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_one_position_further_is_another_store(tmp_path, model, rows, local, engine):
    """The comparison above can fail: rows shifted by one are not taken for the same."""
    shifted = from_server(
        tmp_path / "store",
        rows,
        model,
        engine,
        spoil=lambda given: [None, given[1], *given[1:-1]],
    )
    with pytest.raises(AssertionError):
        assert_same(shifted, local)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_short_rows_keep_what_came(tmp_path, model, rows, local, engine):
    def shorten(given):
        """Every third row has five entries, and one of probability zero."""
        for place in range(1, len(given), 3):
            if engine == "vllm":
                kept = {t: about for t, about in given[place].items() if about["rank"] <= 5}
                unlike = {"logprob": -9999.0, "rank": 6, "decoded_token": "?"}
                given[place] = {**kept, "7": unlike}
            else:
                given[place] = [*given[place][:5], [-math.inf, 7, None]]
        return given

    store = from_server(tmp_path / "store", rows, model, engine, spoil=shorten)
    assert_same(store, local, least=5)
    assert "lengths" in store.arrays(0)


def test_every_fault_and_nothing_lost_doubled_or_misaligned(tmp_path, model, rows, local):
    """429, 500, cut bodies, cut JSON, HTML, lost connections, and null rows where one is needed."""
    kinds = ["429", "500", "cut", "cut_json", "garbage", "empty", "close", None, None]
    random.seed(3)
    seen = set()

    def faults(number, path, body):
        # A text's first request fails in some way, its next ones do not.
        key = tuple(body.get("prompt", ()))
        if path != "/v1/completions" or key in seen:
            return None
        seen.add(key)
        return kinds[len(seen) % len(kinds)]

    nulls = []

    def spoil(given):
        if len(nulls) < 3 and len(given) > 30:
            nulls.append(len(given))
            given[-2] = None
        return given

    store = from_server(tmp_path / "store", rows, model, faults=faults, spoil=spoil, late=0.02)
    assert len(nulls) == 3 and len(seen) == len(rows)
    assert_same(store, local)


def test_null_rows_outside_the_supervised_do_no_harm(tmp_path, model, rows, local):
    def spoil(given):
        return [None, None, *given[2:]] if len(given) > 10 else given

    assert_same(from_server(tmp_path / "store", rows, model, spoil=spoil), local)


def test_a_server_that_gives_up_leaves_what_came(tmp_path, model, rows, local):
    """Rows before the one that failed are committed, and the same call goes on after them."""
    stuck = tuple(rows[7]["input_ids"])
    path = tmp_path / "store"

    def faults(number, path, body):
        return "500" if tuple(body.get("prompt", ())) == stuck else None

    with pytest.raises(ServerError):
        from_server(path, rows, model, faults=faults)
    assert open_store(path, allow_incomplete=True).num_rows == 7
    assert_same(from_server(path, rows, model), local)


def test_a_refused_row_leaves_what_came(tmp_path, model, rows):
    """Not only a server that gives up: what was bought before one bad row is kept."""
    wrong = tuple(rows[7]["input_ids"])
    path = tmp_path / "store"

    def faults(number, path, body):
        return "400" if tuple(body.get("prompt", ())) == wrong else None

    with pytest.raises(CaptureError, match="told to fail"):
        from_server(path, rows, model, faults=faults)
    assert open_store(path, allow_incomplete=True).num_rows == 7


def test_nucleus_from_a_server(tmp_path, tiny_llama_dir, model, rows):
    payload = {"kind": "nucleus", "p": 0.4, "max_k": 30}
    seen = from_server(tmp_path / "seen", rows, model, payload=payload)
    teacher = HFTeacher(
        TeacherArgs(model=str(tiny_llama_dir), dtype="float32"), vocab_size=len(model.tokenizer)
    )
    args = CaptureArgs(teacher="-", **COMMON, method="nucleus", p=0.4, max_k=30)
    expected = fill(tmp_path / "local", rows, GradedSource(teacher, args), model, payload)
    index = np.arange(expected.num_records)
    found, truth = seen.read(index), expected.read(index)
    assert (found.entries == truth.entries).mean() > 0.99
    tail, true_tail = np.exp(decode_tail(found.tail[:, 0])), np.exp(decode_tail(truth.tail[:, 0]))
    assert np.median(np.abs(tail - true_tail)) < 1e-3
    assert len(set((found.entries != 0xFFFFFFFF).sum(1))) > 3


def test_logits_are_not_taken_for_logprobs(tmp_path, model, rows):
    """vLLM with `--logprobs-mode raw_logits`."""

    def spoil(given):
        for row in given[1:]:
            for about in row.values():
                about["logprob"] += 30.0
        return given

    with pytest.raises(ServerError, match=r"not log-probabilities.*raw_logits"):
        from_server(tmp_path / "store", rows, model, spoil=spoil)


def test_too_many_logprobs_names_the_flag(tmp_path, model, rows):
    with pytest.raises(CaptureError, match=r"--max-logprobs 12.*lower `k`"):
        from_server(tmp_path / "store", rows, model, max_logprobs=5)


def test_probed_before_the_first_row(model):
    tokenizer = model.tokenizer

    def check(serving, name="teacher", longest=100, **changes):
        with FaultyServer(serving.handlers) as server:
            args = server_args(server.url)
            args.teacher.model = name
            with ServerTeacher(args.teacher, vocab_size=len(tokenizer)) as teacher:
                teacher.check(tokenizer, longest)
            return [request.path for request in server.requests]

    assert check(ModelServer(model, tokenizer)).count("/tokenize") == 5
    with pytest.raises(CaptureError, match=r"does not serve a model `other`.*it serves teacher"):
        check(ModelServer(model, tokenizer), name="other")
    with pytest.raises(CaptureError, match=r"longest row has 100 tokens.*context of 100"):
        check(ModelServer(model, tokenizer, context=100))
    check(ModelServer(model, tokenizer, context=101))

    other = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    other.add_tokens(["<|im_startle|>"])
    check(ModelServer(model, other))  # More tokens than the student's, and the same ones.
    vocabulary = AutoTokenizer.from_pretrained(tokenizer.name_or_path)
    vocabulary.add_tokens(["quick"])
    with pytest.raises(TokenizerMismatchError, match="they part at token"):
        check(ModelServer(model, vocabulary))


def test_server_that_is_not_there():
    args = server_args("http://127.0.0.1:9/v1")
    args.teacher.server.retries = 0
    with (
        ServerTeacher(args.teacher, vocab_size=100) as teacher,
        pytest.raises(ServerError, match="Is the server up"),
    ):
        teacher.check(None, 10)


def test_random_weights_are_no_accident(model, rows):
    """The tests above need distributions that differ from position to position."""
    logprobs = ModelServer(model, model.tokenizer).logprobs(rows[5]["input_ids"])
    top = logprobs.topk(K).indices
    assert len({tuple(found) for found in top.tolist()}) == len(top)
    assert torch.isfinite(logprobs).all()
