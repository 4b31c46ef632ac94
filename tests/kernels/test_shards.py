"""Heads of which every process has a part of the vocabulary.

A group of gloo processes against the whole head in one, in float64 and in fp32.
"""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice, product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
import torch.multiprocessing
from distill_kernels import (
    DenseLogits,
    DenseTeacher,
    DistillSpec,
    LogitTransform,
    LowRank,
    SparseTeacher,
    VocabShard,
    fused_linear_distill,
    sweep,
)
from distill_kernels.backends import torch_rows
from distill_kernels.shard import Extent
from distill_kernels.spec import Divergence
from support.forks import apart
from support.kernel_cases import Case, make_case, relative_error

VOCAB, ROWS, DIM = 101, 13, 16
TWO, THREE = (0, 37, VOCAB), (0, 3, 90, VOCAB)
"""Where each process's ids begin. Of three, one holds next to nothing and one padding alone."""
SPLITS = (TWO, (0, 3, VOCAB), (0, 34, 68, VOCAB), THREE)
USED = 90
"""Of the ids, those that text and teacher have: the other rows of the head are padding."""
SUMS = ("kd", "ce", "num_tokens", "num_teacher_tokens", "teacher_mass", "top1_agreement", "entropy")


def teachers(case: Case, whole: SparseTeacher) -> Iterator[tuple[str, Any]]:
    """Of every kind, over the ids that are used."""
    yield "tail_bucket", whole
    yield "renormalize", whole
    # The last shard owns none of them, whatever the split.
    yield (
        "tail_bucket",
        replace(whole, ids=torch.where(whole.ids < 0, -1, torch.arange(whole.ids.shape[1]))),
    )
    g = torch.Generator().manual_seed(3)
    yield "dense", DenseLogits(torch.randn(ROWS, USED, generator=g) * 3)
    hidden, weight = torch.randn(ROWS, 8, generator=g), torch.randn(USED, 8, generator=g)
    bias = torch.randn(USED, generator=g)
    yield "dense", DenseTeacher(hidden, weight, bias, LogitTransform(0.5, 20.0))


def cases() -> Iterator[tuple[Case, DistillSpec, LowRank]]:
    """Every divergence with every kind of teacher, tempered or not; and draws."""
    for temperature, sampled in product((1.0, 2.0), (False, True)):
        case = make_case(
            rows=ROWS, dim=DIM, vocab=USED, temperature=temperature, sampled=sampled, bias=True,
            weighted=temperature == 2.0, transform=LogitTransform(0.7, 30.0), seed=9,
        )  # fmt: skip
        g = torch.Generator().manual_seed(5)
        case.weight = torch.cat([case.weight, torch.zeros(VOCAB - USED, DIM)])
        case.bias = torch.cat([case.bias, torch.zeros(VOCAB - USED)])
        low_rank = LowRank(torch.randn(ROWS, 2, generator=g), torch.randn(VOCAB, 2, generator=g))
        spec = DistillSpec(temperature=temperature, alpha=0.7)
        if sampled:
            yield case, replace(spec, support="sampled", label_smoothing=0.1), low_rank
            continue
        for (support, teacher), divergence in product(
            teachers(case, case.teacher), get_args(Divergence)
        ):
            dense = support == "dense"
            yield (
                replace(case, teacher=teacher),
                replace(
                    spec,
                    divergence=divergence,
                    support="tail_bucket" if dense else support,
                    label_smoothing=0.1 if dense else 0.0,
                    reduction="none" if divergence == "jsd" else "mean",
                ),
                low_rank,
            )


def part(teacher: Any, ids: slice) -> Any:
    """What a process is given of a teacher."""
    if isinstance(teacher, DenseLogits):
        return DenseLogits(teacher.logits[:, ids])
    if isinstance(teacher, DenseTeacher):
        return replace(teacher, weight=teacher.weight[ids], bias=teacher.bias[ids])
    return teacher


def run(
    case: Case, spec: DistillSpec, low_rank: LowRank, dtype: torch.dtype, ids: slice, **options: Any
) -> tuple[Any, list[torch.Tensor]]:
    """(output, gradients of hidden, left, weight, bias and right) with the head's rows `ids`."""
    of_rows = (case.hidden, low_rank.left)
    of_ids = (x[ids] for x in (case.weight, case.bias, low_rank.right))
    hidden, left, weight, bias, right = leaves = [
        x.to(dtype, copy=True).requires_grad_() for x in (*of_rows, *of_ids)
    ]
    out = fused_linear_distill(
        hidden, weight, part(case.teacher, ids), case.labels,
        spec=spec, weights=case.weights, bias=bias, low_rank=LowRank(left, right),
        logit_transform=case.transform, **options,
    )  # fmt: skip
    loss = out.loss
    if spec.reduction == "none":
        loss = (loss * torch.linspace(0.5, 2.0, ROWS)).sum()
    loss.backward()
    return out, [x.grad for x in leaves]


def small_chunks(few: bool) -> None:
    """Rows by a budget of bytes that few of them meet, so that shards of unlike sizes could fall
    out of step."""
    sweep.MIN_ROWS = sweep.STEP_ROWS = 1 if few else 32
    sweep.CHUNK_BYTES |= {"cpu": 4 * 128 * 5 if few else 1 << 20}
    torch_rows.BLOCK_BYTES = 4 * 64 * 2 if few else 1 << 20


def hold_to_the_whole(rank: int, bounds: tuple[int, ...], every: int) -> None:
    """`every` so many-th case alone."""
    ids = slice(bounds[rank], bounds[rank + 1])
    shard = VocabShard(ids.start, torch.distributed.group.WORLD)
    for number, (case, spec, low_rank) in enumerate(islice(cases(), 0, None, every)):
        small_chunks(number % 6 == 0)
        whole, expected = run(case, spec, low_rank, torch.float64, slice(None), backend="reference")
        for backend, dtype, most in (
            ("reference", torch.float64, 1e-12),
            ("torch", torch.float32, 2e-5),
        ):
            what = f"{spec} of {type(case.teacher).__name__} on {backend}"
            out, grads = run(case, spec, low_rank, dtype, ids, backend=backend, shard=shard)
            assert relative_error(out.loss.detach(), whole.loss.detach()) < most, what
            mine = [*expected[:2], *(grad[ids] for grad in expected[2:])]
            for name, grad, like in zip(
                ("hidden", "left", "weight", "bias", "right"), grads, mine, strict=True
            ):
                assert grad.shape == like.shape
                error = (grad - like).norm() / expected[2].norm()
                assert error < most, (what, name, error)
            for name in SUMS:
                found, like = getattr(out, name).item(), getattr(whole, name).item()
                assert found == pytest.approx(like, rel=most, abs=most), (what, name)


def refuse_together(rank: int, bounds: tuple[int, ...]) -> None:
    """Every process says so, and none waits for another."""
    group = torch.distributed.group.WORLD
    case = make_case()
    spec = DistillSpec()
    mine = slice(bounds[rank], bounds[rank + 1])

    def call(**changes: Any) -> Any:
        given = {"start": mine.start, "ids": mine, "rows": ROWS, "teacher": case.teacher, **changes}
        rows = slice(given["rows"])
        return fused_linear_distill(
            case.hidden[rows], case.weight[given["ids"]], given["teacher"][rows],
            case.labels[rows], spec=spec, shard=VocabShard(given["start"], group),
        )  # fmt: skip

    call()
    with pytest.raises(ValueError, match=r"hold the ids 0\.\.36, 0\.\.63: expected every id"):
        call(start=0)
    with pytest.raises(ValueError, match=r"hold the ids 0\.\.36, 38\.\.100"):
        call(**({"start": 38, "ids": slice(38, VOCAB)} if rank else {}))
    with pytest.raises(ValueError, match=r"hold the ids 0\.\.100, none"):
        call(**({"start": VOCAB, "ids": slice(0)} if rank else {"ids": slice(None)}))
    with pytest.raises(ValueError, match="have 13, 12 rows: expected the same"):
        call(rows=ROWS - rank)
    dense = DenseLogits(torch.randn(ROWS, VOCAB))
    with pytest.raises(ValueError, match="of a dense teacher 101, 101 ids: expected each one's"):
        call(teacher=dense)
    with pytest.raises(ValueError, match="of a dense teacher 30, 64 ids"):
        call(teacher=part(dense, mine if rank else slice(30)))
    with pytest.raises(ValueError, match="outside the student's vocabulary of 101"):
        call(teacher=replace(case.teacher, ids=case.teacher.ids + VOCAB))
    # A teacher that ends earlier than the student, or later, is none of that.
    call(teacher=part(dense, mine) if rank == 0 else DenseLogits(dense.logits[:, 37:50]))
    call(teacher=DenseLogits(dense.logits[:, :37] if rank == 0 else torch.randn(ROWS, 70)))


def process(
    rank: int, meeting: str, bounds: tuple[int, ...], act: Callable[..., None], *args: Any
) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=len(bounds) - 1
    )
    assert torch.distributed.get_world_size() == len(bounds) - 1
    act(rank, bounds, *args)
    torch.distributed.destroy_process_group()


def spawn(folder: Path, bounds: tuple[int, ...], act: Callable[..., None], *args: Any) -> None:
    given = (str(folder / "meeting"), bounds, act, *args)
    torch.multiprocessing.spawn(process, args=given, nprocs=len(bounds) - 1)


def test_shards_train_what_the_whole_head_does(tmp_path):
    """Some cases: of 72, no divergence and no kind of teacher is left out."""
    spawn(tmp_path, THREE, hold_to_the_whole, 5)


@pytest.mark.slow
@pytest.mark.parametrize("bounds", SPLITS)
def test_every_split_trains_what_the_whole_head_does(tmp_path, bounds):
    spawn(tmp_path, bounds, hold_to_the_whole, 1)


def test_shards_that_do_not_go_together_are_refused(tmp_path):
    spawn(tmp_path, TWO, refuse_together)


@pytest.fixture
def alone(tmp_path):
    """Has a check called with a shard that a group of one process has, in a process of its own."""

    def ask(check: Callable[[VocabShard], None]) -> None:
        def inside() -> None:
            torch.distributed.init_process_group(
                "gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1
            )
            check(VocabShard(0, torch.distributed.group.WORLD))

        apart(inside)

    return ask


def test_the_sizes_of_shards_are_told_where_the_head_is(alone):
    """A group of NCCL serves no tensor on the CPU, as one of gloo serves none on `meta`."""

    def check(shard: VocabShard) -> None:
        assert shard.extent(7, 3, torch.device("cpu")) == Extent(((0, 7),))
        with pytest.raises((RuntimeError, NotImplementedError)):
            shard.extent(7, 3, torch.device("meta"))

    alone(check)


def test_a_graph_does_not_take_a_shard_for_the_whole_head(alone):
    """The operator that torch.compile sees knows of no group."""
    alone(_is_not_taken_for_the_whole)


def _is_not_taken_for_the_whole(shard: VocabShard) -> None:
    case = make_case()

    def loss(hidden: torch.Tensor) -> torch.Tensor:
        return fused_linear_distill(
            hidden, case.weight, case.teacher, case.labels, spec=DistillSpec(), shard=shard
        ).loss

    with pytest.raises(Exception, match="VocabShard's group cannot be part of a graph"):
        torch.compile(loss, backend="eager", fullgraph=True)(case.hidden)
    outside = torch.compile(torch.compiler.disable(loss), backend="eager")
    assert outside(case.hidden) == loss(case.hidden)


def test_triton_is_refused_for_a_shard():
    case = make_case()
    with pytest.raises(ValueError, match="a row's whole vocabulary; use torch"):
        fused_linear_distill(
            case.hidden, case.weight, case.teacher, case.labels,
            spec=DistillSpec(), shard=VocabShard(0, object()), backend="triton",
        )  # fmt: skip


def test_the_documented_shards_have_the_loss_of_one_process(tmp_path):
    """docs/tensor-parallel.md, as it is printed there."""
    text = (Path(__file__).parents[2] / "docs/tensor-parallel.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", text, re.S)
    path = tmp_path / "loop.py"
    path.write_text(code)
    said = {}
    for ranks in (1, 2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1])}
        env = {**os.environ, **meeting, "WORLD_SIZE": str(ranks), "OMP_NUM_THREADS": "1"}
        runs = [
            subprocess.Popen(
                [sys.executable, str(path)], env={**env, "RANK": str(rank)},
                stdout=subprocess.PIPE, text=True,
            )
            for rank in range(ranks)
        ]  # fmt: skip
        said[ranks] = [run.communicate(timeout=120)[0].strip() for run in runs]
        assert [run.returncode for run in runs] == [0] * ranks
    (alone,) = said[1]
    loss = re.search(r"loss \S+", alone)[0]
    assert said[2] == [
        f"rank 0 of 2: {loss} head (2001, 32)",
        f"rank 1 of 2: {loss} head (2000, 32)",
    ]
