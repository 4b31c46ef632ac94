"""Records of what the teacher said of a text while the student learnt from it."""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from distill_kernels import DenseLogits, DenseTeacher, SparseTeacher
from distill_kernels.teacher import Teacher as Distribution

from axolotl_distill.capture.records import make_records
from axolotl_distill.capture.top import records_from_top
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.distill import DistillArgs
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.store import RecordBatch
from axolotl_distill.store.payloads import join_batches
from axolotl_distill.teachers.top import TopLogprobs

LOGIT_BYTES = 256 << 20


def record_args(args: DistillArgs, folder: str) -> CaptureArgs:
    """What a record of this run's is: what `axolotl distill capture` would make for its loss, so
    that both can be mixed. Draws at T for forward_kl; for any other divergence, and from a server,
    the `k` likeliest tokens with the tail at 1 (of a tempered server, its own) and T."""
    assert isinstance(args.teacher, TeacherArgs)
    drawn = args.divergence == "forward_kl" and args.teacher.server is None
    return CaptureArgs.model_construct(
        teacher=args.teacher,
        output=folder,
        method="sampled" if drawn else "topk",
        k=args.k,
        temperatures=sorted({args.teacher.tempered, args.temperature}),
        sampling_temperature=args.temperature,
    )


def records_of(said: Distribution, args: CaptureArgs, vocab_size: int, seed: int) -> RecordBatch:
    """Records of R positions, in their order.

    said  at T = 1: all of the teacher's distribution, or a server's likeliest tokens
    seed  of what is drawn
    """
    if isinstance(said, SparseTeacher):
        # The token that came, if it is none of the likeliest, is the last.
        ids, logprobs = (values[:, : args.k].cpu().numpy() for values in (said.ids, said.logprobs))
        return records_from_top(
            TopLogprobs(ids, logprobs), temperatures=args.own_temperatures, vocab_size=vocab_size
        )
    parts = []
    size = max(1, LOGIT_BYTES // (4 * vocab_size))
    with torch.no_grad(), _in_its_own_types(said):
        for start in range(0, said.num_rows, size):
            logits = _logits(said[start : start + size])[:, :vocab_size].float()
            drawn = np.random.SeedSequence([seed, start]).generate_state(1, np.uint64)[0]
            parts.append(make_records(logits, args, int(drawn >> np.uint64(1))))
    return join_batches(parts)


def _logits(said: DenseLogits | DenseTeacher) -> torch.Tensor:
    if isinstance(said, DenseLogits):
        return said.logits
    made = torch.nn.functional.linear(said.hidden, said.weight, said.bias)
    return said.logit_transform(made.float())


@contextmanager
def _in_its_own_types(said: DenseLogits | DenseTeacher) -> Iterator[None]:
    tensor = said.logits if isinstance(said, DenseLogits) else said.hidden
    with torch.autocast(tensor.device.type, enabled=False):
        yield
