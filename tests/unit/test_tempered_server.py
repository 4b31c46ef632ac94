"""A server that serves a tempered teacher: exact at its temperature, and found out where it is not
what is said."""

import math

import numpy as np
import pytest
import torch
from support.faulty_server import FaultyServer
from support.live import ALL, another, attach, live, packed, texts
from support.model_server import ModelServer
from support.model_types import VOCAB, tiny
from support.stores import random_rows
from support.synthetic import about_rows

from axolotl_distill.capture import Capture
from axolotl_distill.capture.graded import GradedSource
from axolotl_distill.capture.teacher import estimated_at
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.distill import DistillArgs, parse_distill
from axolotl_distill.errors import CaptureError, ConfigError
from axolotl_distill.host.store_checks import loss_findings
from axolotl_distill.signal.live import Reading, live_signal
from axolotl_distill.signal.source import signal_source
from axolotl_distill.store import new_manifest, verify_store
from axolotl_distill.store.payloads import distribution_of
from axolotl_distill.teachers.fingerprint import identity
from axolotl_distill.teachers.server import ServerTeacher
from axolotl_distill.teachers.temperature import contradicts, reading, seems_tempered
from axolotl_distill.teachers.top import TopLogprobs

T = 2.0
BATCH = packed(texts([17, 9, 24, 5]))


def tempered(model):
    """Its logits, halved: what `axolotl distill temper` does to a Llama."""
    with torch.no_grad():
        model.model.norm.weight.div_(T)
    return model


def block(url, engine="vllm", **changes):
    reached = {"base_url": url, "engine": engine, "retries": 2, "timeout": 20.0}
    return {"model": "teacher", "server": reached, "tempered": T, **changes}


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize("k", [VOCAB, 8])
def test_a_live_one_is_the_teacher_at_its_temperature(engine, k):
    expected = tiny("llama")
    attach(expected, live(another(), T), divergence="reverse_kl", alpha=1.0)
    right = expected(**BATCH).loss.item()
    with FaultyServer(
        ModelServer(tempered(another()), None, max_logprobs=VOCAB).handlers
    ) as server:
        teacher = block(server.url, engine)
        args = DistillArgs(teacher=teacher, k=k, temperature=T, divergence="reverse_kl", alpha=1.0)
        source = live_signal(args, args.teacher, Reading(ALL), tiny("llama"))
        student = tiny("llama")
        source.temperature, own = T, source.temperature
        attach(student, source, divergence="reverse_kl", alpha=1.0)
        source.temperature = own
        seen = student(**BATCH).loss.item()
        source.teacher.__exit__()
    assert own == 1.0
    # A bucket is a coarser teacher, and never a worse one than it says.
    assert seen == pytest.approx(right, rel=1e-4) if k == VOCAB else 0 < seen < right


def stored(path, model, rows, url, **changes):
    args = CaptureArgs(teacher=block(url), output="-", k=12, **changes)
    size = len(model.tokenizer)
    header = new_manifest(
        vocab_size=size,
        payloads=[distribution_of(args)],
        temperatures=args.own_temperatures,
        tail_estimated=estimated_at(args),
        sequence_len=128,
        tokenizer={"fingerprint": "f", "name": "n"},
        teacher=identity(args.teacher),
        source=about_rows(rows),
    )
    with (
        ServerTeacher(args.teacher, vocab_size=size) as teacher,
        Capture(path, header, rows, model.tokenizer.decode, shard_records=10_000) as capture,
    ):
        capture(GradedSource(teacher, args))
    return verify_store(path)


def test_a_store_has_exact_tails_at_its_temperature(tmp_path, tiny_model):
    model = tiny_model()
    rows = random_rows(model.tokenizer, [25, 3, 40], seed=5)
    truth = torch.cat([ModelServer(model, None).model(
        input_ids=torch.tensor([row["input_ids"]])).logits[0, :-1].detach() for row in rows
    ]).div(T).log_softmax(-1)  # fmt: skip
    keep = np.concatenate([np.asarray(row["labels"][1:]) != -100 for row in rows])
    truth = truth[torch.from_numpy(keep)]
    with FaultyServer(ModelServer(tempered(tiny_model()), model.tokenizer).handlers) as server:
        store = stored(tmp_path / "store", model, rows, server.url)
    manifest = store.manifest
    assert (manifest.temperatures, manifest.tail_estimated, manifest.served) == ([1.0], [], [T])
    # Read as training reads it.
    args = DistillArgs(temperature=T, divergence="reverse_kl")
    source = signal_source(args, [store], model, None)
    records = store.read(np.arange(store.num_records))
    columns = manifest.payloads.collate(records, manifest.temperatures, T / manifest.tempered)
    given = {c.name: torch.from_numpy(values)[None] for c, values in columns.items()}
    said = source.signal(given, torch.arange(store.num_records), {}).distribution
    right = truth.gather(1, said.ids)
    assert (said.logprobs - right).abs().max() < 2e-3
    left = torch.log1p(-right.exp().sum(-1))
    assert (said.tail_logprob - left).abs().max() < 2e-3
    assert not [finding for finding in loss_findings(store, args) if finding.error]
    assert not list(loss_findings(store, args)), "nothing is estimated"
    for wrong in (1.0, 4.0):
        (found,) = loss_findings(store, DistillArgs(temperature=wrong, divergence="reverse_kl"))
        assert "serves the temperatures [2.0]" in str(found)


def test_other_temperatures_of_a_tempered_server_are_estimates(tmp_path, tiny_model):
    model = tiny_model()
    rows = random_rows(model.tokenizer, [9, 12], seed=5)
    with FaultyServer(ModelServer(tempered(tiny_model()), model.tokenizer).handlers) as server:
        store = stored(tmp_path / "store", model, rows, server.url, temperatures=[1.0, 4.0])
    assert store.manifest.served == [1.0, 2.0, 4.0]
    assert store.manifest.tail_estimated == [0.5, 2.0]
    (found,) = loss_findings(store, DistillArgs(temperature=4.0, divergence="reverse_kl"))
    assert found.error is None and "estimated" in str(found) and "T=2" in str(found)


@pytest.mark.parametrize(
    ("values", "said"),
    [
        ({"teacher": block("http://h/v1")}, "Use 2"),
        ({"teacher": block("http://h/v1", tempered=1.0), "temperature": 2.0}, "--temperature 2"),
        ({"teacher": {"model": "m", "tempered": 2.0}}, "`tempered: 2` is not read"),
        ({"teacher": block("http://h/v1", tempered=0.0)}, "greater than 0"),
    ],
)
def test_what_cannot_be(values, said):
    with pytest.raises(ConfigError) as refused:
        parse_distill(values)
    assert said in str(refused.value)


def test_what_goes_together():
    assert parse_distill({"teacher": block("http://h/v1"), "temperature": 2.0})
    parse_distill({"teacher": block("http://h/v1"), "support": "renormalize"})


def calibrated(temperature, seed=0):
    """The likeliest 16 of 400 positions whose tokens were drawn from what the model says."""
    rng = np.random.default_rng(seed)
    logits = 3.0 * rng.standard_normal((400, 200))
    log_p = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    came = [rng.choice(200, p=np.exp(row)) for row in log_p]
    said = log_p / temperature
    said -= np.log(np.exp(said).sum(1, keepdims=True))
    ids = np.argsort(-said, axis=1)[:, :16]
    return TopLogprobs(ids, np.take_along_axis(said, ids, 1)), came


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0, 4.0])
def test_a_calibrated_model_shows_its_temperature(temperature):
    found = reading(*calibrated(temperature))
    assert found.is_telling and found.scale == pytest.approx(temperature, rel=0.15)
    assert contradicts(2.0, found) is (temperature <= 1.0)
    assert not contradicts(1.0, found)
    assert seems_tempered(1.0, found) is (temperature >= 2.0)


def test_a_model_that_knows_nothing_of_the_text_says_nothing():
    top, _ = calibrated(1.0)
    assert not reading(top, [5] * 400).is_telling
    assert reading(top, [10_000] * 400) == (0, math.inf, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(("is_tempered", "said"), [(True, 2.0), (False, 2.0), (False, 1.0)])
def test_a_real_model_is_found_out(smollm2_dir, is_tempered, said):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(smollm2_dir, dtype=torch.float32)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_dir)
    serving = ModelServer(tempered(model) if is_tempered else model, tokenizer)
    with FaultyServer(serving.handlers) as server:
        args = CaptureArgs(teacher=block(server.url, tempered=said), output="-")
        with ServerTeacher(args.teacher, vocab_size=len(tokenizer)) as teacher:
            if said == 2.0 and not is_tempered:
                with pytest.raises(CaptureError, match="reads as a model that was not"):
                    teacher.check(tokenizer, 100)
                return
            teacher.check(tokenizer, 100)
    assert "do not follow the temperature" in teacher.note
    assert f"the teacher's {said:g}." in teacher.note and "is it another" not in teacher.note
