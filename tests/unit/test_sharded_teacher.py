"""A teacher that two processes share says what it says whole, whatever each of them asks it."""

import torch
import torch.multiprocessing
from support.live import ALL, IGNORE, another, packed, texts

from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.signal.live import LiveSignal
from axolotl_distill.signal.signal import Want
from axolotl_distill.teachers.hf import HFTeacher, ModelTeacher

ASKED = (
    ([17, 9, 24, 5], [12]),
    ([8], [40, 3, 3, 3, 3, 30]),
    ([6, 7], []),
    ([], []),
)
"""The lengths of the documents of each process, batch for batch. [] is a batch in which nothing is
learnt."""


def batch_of(lengths):
    batch = packed(texts(lengths or [11]))
    if not lengths:
        batch["shift_labels"] = torch.full_like(batch["shift_labels"], IGNORE)
    return batch


def said_by(teacher, batch, together):
    source = LiveSignal(
        *(teacher, "teacher", ALL, Want(unprojected=True), "tail_bucket", 1.0),
        batched=True,
        together=together,
    )
    learnt = (batch["shift_labels"].flatten() != IGNORE).nonzero().flatten()
    return source.signal(batch, learnt, batch).distribution


def process(rank: int, meeting: str, folder: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2
    )
    shared = HFTeacher(TeacherArgs(model=folder, sharded=True), vocab_size=ALL.size)
    whole = ModelTeacher(another(), "whole", vocab_size=ALL.size)
    layers = list(shared.model.base_model.layers.parameters())
    assert sum(p.to_local().numel() for p in layers) < 0.6 * sum(p.numel() for p in layers)
    assert not any(p.requires_grad for p in shared.model.parameters())
    for lengths in ASKED:
        batch = batch_of(lengths[rank])
        ours, expected = said_by(shared, batch, True), said_by(whole, batch, False)
        if lengths[rank]:
            torch.testing.assert_close(ours.hidden, expected.hidden)
            torch.testing.assert_close(ours.weight, expected.weight)
    torch.distributed.destroy_process_group()


def test_two_processes_share_a_teacher(tmp_path):
    another().save_pretrained(tmp_path / "teacher")
    torch.multiprocessing.spawn(
        process, (str(tmp_path / "meeting"), str(tmp_path / "teacher")), nprocs=2
    )
