"""Hidden states out of a store, as a real capture of a tiny teacher made it, beside those of the
teacher itself: what the loss gets, the loss, and its gradients."""

import numpy as np
import pytest
import torch
from axolotl.utils.collators import DataCollatorForSeq2Seq, V2BatchSamplerDataCollatorForSeq2Seq
from support.stores import about_rows, random_rows, store_features

from axolotl_distill.capture import Capture
from axolotl_distill.capture.teacher import opened
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.distill import DistillArgs
from axolotl_distill.host.collator import TeacherCollator
from axolotl_distill.objectives.forward import attach_distill_forward
from axolotl_distill.objectives.hidden import HiddenObjective
from axolotl_distill.objectives.logits import logits_objective
from axolotl_distill.signal.batch import COLUMNS, IGNORE
from axolotl_distill.signal.live import LiveSignal
from axolotl_distill.signal.signal import Want
from axolotl_distill.signal.source import signal_source
from axolotl_distill.store import describe_tokenizer, new_manifest, open_store, verify_store
from axolotl_distill.store.payloads import distribution_of
from axolotl_distill.teachers.hf import ModelTeacher
from axolotl_distill.teachers.tokenizer import SharedVocabulary

WIDTH, DEPTH, LAYERS = 48, 4, [0, 2, 3]
PAIRS = [(0, 3), (1, 0), (1, 3)]
SLOW = pytest.mark.slow
KINDS = (pytest.param("mse", marks=SLOW), pytest.param("cosine", marks=SLOW), "normalized_mse")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory, tiny_model):
    folder = tmp_path_factory.mktemp("teacher")
    model = tiny_model(seed=1, hidden_size=WIDTH, num_hidden_layers=DEPTH).eval()
    model.save_pretrained(folder)
    model.folder = folder
    return model


@pytest.fixture(scope="module")
def rows(teacher):
    """Of which one has nothing to learn; more than a window of a capture has."""
    found = random_rows(teacher.tokenizer, [6 + (11 * n) % 29 for n in range(20)], seed=3)
    found[4]["labels"] = [IGNORE] * len(found[4]["labels"])
    return found


def captured(folder, teacher, rows, dtype, **given):
    block = {"layers": LAYERS, "dtype": dtype}
    args = CaptureArgs(
        teacher={"model": str(teacher.folder), "device": "cpu", "dtype": "float32"},
        **{"output": str(folder), "batch_tokens": 200, "hidden_states": block},
        **(given or {"k": 8}),
    )
    about = {**block, "kind": "hidden", "depth": DEPTH, "width": WIDTH}
    tokenizer = teacher.tokenizer
    manifest = new_manifest(
        vocab_size=len(tokenizer),
        payloads=[distribution_of(args), about],
        temperatures=args.temperatures if args.method == "topk" else [],
        sequence_len=60,
        tokenizer=describe_tokenizer(tokenizer, len(tokenizer), range(len(tokenizer))),
        teacher={"name": "small"},
        source=about_rows(rows),
    )
    with (
        Capture(folder, manifest, rows, str, shard_records=60) as capture,
        opened(args, len(tokenizer)) as source,
    ):
        capture(source)
    return verify_store(folder)


@pytest.fixture(scope="module", params=["float16", "int8"])
def store(request, tmp_path_factory, teacher, rows):
    return captured(tmp_path_factory.mktemp("store") / "s", teacher, rows, request.param)


def batch_of(store, tokenizer, layout, **given):
    """Of five rows, one of which has nothing to learn; as Axolotl collates them."""
    packed = layout == "packed"
    tokenizer.padding_side = "left" if layout == "left" else "right"
    collate = TeacherCollator(
        tokenizer,
        base_cls=V2BatchSamplerDataCollatorForSeq2Seq if packed else DataCollatorForSeq2Seq,
        packed=packed,
        stores=[store],
        temperature=1.0,
        **given,
    )
    features = store_features(tokenizer, store.path, packed=packed)[:5]
    batch = collate([features] if packed else features)
    tokenizer.padding_side = "right"
    if packed:
        del batch["attention_mask"]
    return dict(batch)


def live(teacher):
    vocabulary = SharedVocabulary(size=len(teacher.tokenizer))
    want = Want(unprojected=True, layers=tuple(other for _, other in PAIRS))
    whole = ModelTeacher(teacher, "T", vocab_size=vocabulary.size)
    return LiveSignal(whole, "T", vocabulary, want, "tail_bucket", 1.0, batched=True)


def stored(store):
    return signal_source(DistillArgs(), [store], None, None, tuple(o for _, o in PAIRS))


def apart(batch):
    columns = {column.name: batch[column.name] for column in COLUMNS if column.name in batch}
    return columns, {name: value for name, value in batch.items() if name not in columns}


def bound(x, dtype):
    """Of what the store may be off; 1e-5 for a teacher that read its text in other batches."""
    largest = x.abs().amax(-1, keepdim=True)
    if dtype == "int8":
        return largest / 254 * 1.001 + 1e-5 * largest
    return x.abs() * 2.0**-11 + 1e-5 * largest


@pytest.mark.parametrize("layout", ["right", "left", "packed"])
def test_a_store_says_what_the_teacher_says(store, teacher, tokenizer, layout):
    columns, inputs = apart(batch_of(store, tokenizer, layout))
    at = torch.nonzero(columns["shift_labels"].flatten() != IGNORE)[:, 0]
    rows = torch.cat([at.new_zeros(1), at])
    said, expected = (
        source.signal(columns, rows, inputs).layers for source in (stored(store), live(teacher))
    )
    assert said.shape == expected.shape == (len(rows), len(PAIRS), WIDTH)
    dtype = str(store.read(np.arange(1)).columns["hidden"].dtype)
    assert ((said - expected)[1:].abs() <= bound(expected, dtype)[1:]).all()


def attached(model, source, kind):
    args = DistillArgs(
        teacher="m", alpha=0.0, hidden_states={"pairs": [*map(list, PAIRS)], "loss": kind}
    )
    hidden = HiddenObjective(args.hidden_states, PAIRS, (64, WIDTH))
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in hidden.projections:
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    attach_distill_forward(model, [logits_objective(args, source), hidden], source)
    return model


def learnt(model, batch):
    model.zero_grad()
    out = model(**batch)
    out.loss.backward()
    grads = {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
    return out.loss.item(), out.metrics["hidden"], grads


@pytest.mark.parametrize("kind", KINDS)
def test_the_loss_and_its_gradients_are_the_live_teachers(
    store, teacher, tokenizer, tiny_model, kind
):
    """To the rounding of the store."""
    batch = batch_of(store, tokenizer, "right")
    text = {n: v for n, v in batch.items() if n not in ("teacher_entries", "teacher_tail")}
    loss, (total, count), grads = learnt(attached(tiny_model(), stored(store), kind), batch)
    other, (seen, number), theirs = learnt(attached(tiny_model(), live(teacher), kind), text)
    is_int8 = store.read(np.arange(1)).columns["hidden"].dtype == np.int8
    near = 1e-2 if is_int8 else 2e-4
    assert count == number == (batch["shift_labels"] != IGNORE).sum()
    assert (total / seen).item() == pytest.approx(1.0, rel=near)
    assert loss == pytest.approx(other, rel=near)
    assert grads.keys() == theirs.keys()
    for name, gradient in theirs.items():
        assert (grads[name] - gradient).norm() <= 5 * near * gradient.norm(), name


@pytest.mark.parametrize("kind", KINDS)
def test_text_beside_a_store_says_nothing(store, tokenizer, tiny_model, kind):
    """Positions without a record, one of them the first of the batch: no loss, no gradient, and
    they do not count."""
    model = attached(tiny_model(), stored(store), kind)
    batch = batch_of(store, tokenizer, "right")
    rest = {name: value.clone() for name, value in batch.items()}
    fills = {c.name: c.fill for c in COLUMNS if c.name.startswith("teacher_")}
    for name, fill in fills.items():
        if name in rest:
            rest[name][:2] = fill
    _, (total, count), _ = learnt(model, rest)
    _, (whole, _), _ = learnt(model, batch)
    half = {name: value[2:] for name, value in batch.items()}
    _, (expected, number), _ = learnt(model, half)
    assert torch.isfinite(total) and count == number < (rest["shift_labels"] != IGNORE).sum()
    assert total.item() == pytest.approx(expected.item(), rel=1e-5) and total < whole
    for name, fill in fills.items():
        if name in rest:
            rest[name][:] = fill
    _, (total, count), grads = learnt(model, rest)
    assert total == count == 0
    assert not any(grads[name].any() for name in grads if "projections" in name)


def test_a_run_that_does_not_learn_from_them_does_not_read_them(store, tokenizer):
    batch = batch_of(store, tokenizer, "right", without=("hidden",))
    assert "teacher_entries" in batch
    assert not [name for name in batch if "hidden" in name]


def test_a_capture_that_was_stopped_is_the_same(tmp_path, teacher, rows):
    """Batches are made of a window's rows, whatever was there before."""
    whole = captured(tmp_path / "whole", teacher, rows, "int8")

    class Stop(BaseException):
        pass

    class Rows(list):
        def __getitem__(self, index):
            if index == 18:
                raise Stop
            return super().__getitem__(index)

    with pytest.raises(Stop):
        captured(tmp_path / "again", teacher, Rows(rows), "int8")
    again = captured(tmp_path / "again", teacher, rows, "int8")
    for one, other in zip(whole.manifest.shards, again.manifest.shards, strict=True):
        assert one.files[one.records_file] == other.files[other.records_file]


def test_draws_have_them_too(tmp_path, teacher, rows):
    found = captured(tmp_path / "drawn", teacher, rows, "float16", draws=4)
    assert found.manifest.payloads.columns == ["entries", "entropy", "hidden", "hidden_scale"]
    assert open_store(tmp_path / "drawn").num_records == found.manifest.source["supervised"]
