"""What a capture holds at once: a window of rows, a batch of logits and an open shard."""

import weakref
from collections.abc import Sequence

import torch
from distill_kernels import DenseLogits
from support.synthetic import VOCAB, about_rows, manifest

from axolotl_distill.capture import Capture
from axolotl_distill.capture.graded import GradedSource
from axolotl_distill.capture.source import WINDOW_ROWS
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.signal.signal import Signal
from axolotl_distill.store import open_store

ROWS = 2000


class Row(dict):
    """A dict that can be referred to weakly."""

    __hash__ = object.__hash__
    __eq__ = object.__eq__


class LazyRows(Sequence):
    """Rows made when asked for; counts how many are alive together."""

    def __init__(self):
        self.alive: weakref.WeakSet = weakref.WeakSet()
        self.most = 0

    def __len__(self):
        return ROWS

    def __getitem__(self, index):
        ids = [(index * 7 + t) % VOCAB for t in range(4 + index % 9)]
        row = Row(input_ids=ids, labels=[-100, -100, *ids[2:]])
        self.alive.add(row)
        self.most = max(self.most, len(self.alive))
        return row


class Unigram:
    """A teacher whose logits depend on the token alone."""

    vocab_size = VOCAB

    def __init__(self):
        self.table = torch.randn(VOCAB, VOCAB // 50, generator=torch.Generator().manual_seed(0))
        self.most_tokens = 0

    def grade(self, rows, positions, want):
        self.most_tokens = max(self.most_tokens, len(rows) * max(map(len, rows.values())))
        for index, row in rows.items():
            logits = self.table[torch.tensor(row)[positions[index]]].repeat(1, 50)
            yield index, slice(0, len(logits)), Signal(DenseLogits(logits))


def test_nothing_grows_with_the_dataset(tmp_path):
    args = CaptureArgs(
        teacher="none", output="-", k=6, temperatures=[1, 2], batch_tokens=64, shard_records=500
    )
    rows, teacher = LazyRows(), Unigram()
    open_records = []
    header = manifest("topk", source=about_rows(rows[i] for i in range(ROWS)))
    with Capture(
        tmp_path / "store",
        header,
        rows,
        lambda ids: open_records.append(capture.writer.open_records) or "",
        shard_records=args.shard_records,
    ) as capture:
        report = capture(GradedSource(teacher, args, args.batch_tokens))
    assert report.rows == ROWS and report.skipped == 0
    assert open_store(tmp_path / "store").num_records == report.records
    assert rows.most <= 2 * WINDOW_ROWS
    assert teacher.most_tokens <= 64
    assert max(open_records) <= 500
