"""Records for a student with another tokenizer, of a teacher that grades its own ids of a text."""

import time
from collections.abc import Iterator, Sequence, Set

import numpy as np
import torch
from distill_kernels import DenseLogits, SparseTeacher
from torch import Tensor

from axolotl_distill.align import Pair, pair_rows
from axolotl_distill.align.chain import Cut, chain
from axolotl_distill.align.methods import VocabularyMap
from axolotl_distill.align.pair import NONE
from axolotl_distill.capture.graded import batches
from axolotl_distill.capture.named import Unnamed, dense
from axolotl_distill.capture.source import WINDOW_ROWS, Row
from axolotl_distill.errors import CaptureError
from axolotl_distill.signal.batch import OTHER_IDS, OTHER_LABELS, supervised_positions
from axolotl_distill.signal.signal import Signal, Want
from axolotl_distill.store import RecordBatch, encoding
from axolotl_distill.teachers.base import Teacher

TEACHER_IDS, TEACHER_LABELS = OTHER_IDS.name, OTHER_LABELS.name
"""Columns of a row that was written for a teacher too"""
PUSHED_BYTES = 256 << 20
# Of what may follow, as many are asked whether they undo a cut of the student's.
LIKELIEST = 256
# What they leave, where a sum of probabilities rounds to one.
LEAST = 1e-9


class CrossSource:
    """Has a teacher grade its own tokenisation of a window of rows, and makes of it what it says of
    the student's tokens (align/chain.py).

    doubtful      bool [student's ids], see Pair.doubtful
    mapping       in place of `span`, where both cut
    k             entries of a record, at most
    batch_tokens  of rows of like length that the teacher gets together; None: it takes a window at
                  once
    want          what it is asked for; by default all that it says. Of one that names its likeliest
                  tokens and the one that came, all others count as nothing: `unnamed` says how
                  much they are
    """

    window_rows = WINDOW_ROWS
    workers = 1

    def __init__(
        self,
        teacher: Teacher,
        pair: Pair,
        doubtful: np.ndarray,
        *,
        k: int,
        batch_tokens: int | None,
        mapping: VocabularyMap | None = None,
        want: Want | None = None,
    ):
        self.teacher, self.pair, self.batch_tokens = teacher, pair, batch_tokens
        self.mapping, self.want = mapping, want or Want()
        self.unnamed = Unnamed()
        self.teacher_seconds = 0.0
        if mapping is None:
            self.pushing = Pushing(pair, pair.firsts, doubtful, k)
        else:
            self.pushing = Pushing(pair, mapping.targets, np.zeros(len(pair.student), bool), k)

    def records(self, rows: dict[int, Row], wanted: Set[int]) -> Iterator[tuple[int, RecordBatch]]:
        """See Source. Raises what the teacher does, and CaptureError for logits that are not
        finite."""
        tokens = self.batch_tokens
        # A server is asked for what is wanted and nothing else.
        for batch in [sorted(wanted)] if tokens is None else batches(rows, wanted, tokens):
            for index, records in self.grade({index: rows[index] for index in batch}):
                if index in wanted:
                    yield index, records

    def grade(self, rows: dict[int, Row]) -> Iterator[tuple[int, RecordBatch]]:
        """The records of one batch; every row has a supervised token."""
        heard = {
            index: Heard(row, self.pair, self.pushing, self.mapping) for index, row in rows.items()
        }
        ids = {index: row[TEACHER_IDS] for index, row in rows.items()}
        positions = {index: heard[index].positions for index in rows}
        start = time.monotonic()
        for index, part, signal in self.teacher.grade(ids, positions, self.want):
            self.teacher_seconds += time.monotonic() - start
            for piece, logprobs in self._said(index, part, signal, heard[index].after):
                heard[index].take(piece, logprobs)
            if part.stop == positions[index].size:
                yield index, heard.pop(index).records()
            start = time.monotonic()

    def _said(
        self, index: int, part: slice, signal: Signal, after: np.ndarray
    ) -> Iterator[tuple[slice, Tensor]]:
        """Log-probabilities of all of the teacher's tokens, by parts of `part`."""
        said = signal.distribution
        if isinstance(said, SparseTeacher):
            self.unnamed.add(said)
            for here, logprobs in dense(said, after[part], self.teacher.vocab_size):
                yield slice(part.start + here.start, part.start + here.stop), logprobs
            return
        assert isinstance(said, DenseLogits), "no teacher gives anything else here"
        if not bool(torch.isfinite(said.logits).all()):
            raise CaptureError(
                f"The teacher gave logits that are not finite for row {index}. Capture "
                "with `distill.capture.teacher.dtype: float32`, or look at that row."
            )
        yield part, said.logits.log_softmax(-1)


class Pushing:
    """The teacher's probabilities as the student's tokens': a sum over all tokens that have one and
    the same of the student's in `firsts`, int64 [teacher's ids]."""

    def __init__(self, pair: Pair, firsts: np.ndarray, doubtful: np.ndarray, k: int):
        self.size, self.k = len(pair.student), min(k, len(pair.student))
        self.firsts = torch.from_numpy(np.where(firsts == NONE, self.size, firsts))
        self.doubtful = torch.from_numpy(np.append(doubtful, True))

    def likeliest(
        self,
        dense: Sequence[tuple[int, Tensor, np.ndarray, float]],
        items: tuple[np.ndarray, np.ndarray, np.ndarray],
        own: np.ndarray,
        count: int,
        like: Tensor,
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(ids, probabilities) [count, k] of the likeliest tokens but `own`, int64 [count], and the
        probabilities of these, float64 [count].

        dense   (record, log-probabilities [teacher's ids], tokens left out, log of a factor)
        items   (record, student's token, probability) of single ones
        """
        if self.firsts.device != like.device:
            self.firsts, self.doubtful = self.firsts.to(like.device), self.doubtful.to(like.device)
        pushed = torch.zeros(count, self.size + 1, dtype=like.dtype, device=like.device)
        for record, logprobs, broken, factor in dense:
            probs = (logprobs + factor).exp()
            if broken.size:
                probs[torch.from_numpy(broken).to(like.device)] = 0.0
            pushed[record].index_add_(0, self.firsts, probs)
        records, tokens, values = items
        if records.size:
            tokens = np.where(tokens == NONE, self.size, tokens)
            place = tuple(torch.from_numpy(axis).to(like.device) for axis in (records, tokens))
            pushed.index_put_(place, torch.from_numpy(values).to(pushed), accumulate=True)
        pushed[:, self.doubtful] = 0.0
        here = (torch.arange(count), torch.from_numpy(own))
        came = pushed[here].double().cpu().numpy()
        pushed[here] = 0.0
        top = pushed.topk(min(self.k, self.size), dim=-1)
        return top.indices.cpu().numpy(), top.values.double().cpu().numpy(), came


class Heard:
    """One row, and what was heard of the teacher so far.

    positions  int64, ascending: where the teacher is asked
    after      int64: the token of its that comes after each, NONE behind the last
    """

    def __init__(
        self, row: Row, pair: Pair, pushing: Pushing, mapping: VocabularyMap | None = None
    ):
        self.pair, self.pushing, self.mapping = pair, pushing, mapping
        self.theirs = np.asarray(row[TEACHER_IDS], np.int64)
        self.own = np.asarray(row["input_ids"], np.int64)
        answers = pair_rows(
            row[TEACHER_IDS], row[TEACHER_LABELS], row["input_ids"], row["labels"],
            pair.teacher, pair.student,
        )  # fmt: skip
        self.chains = [chain(answer, self.theirs, self.own, pair) for answer in answers]
        self.wanted = supervised_positions(row["labels"])
        self._flatten()
        asked = [np.arange(each.first - 1, each.behind - 1) for each in self.chains]
        asked += [np.array([each.behind - 1]) for each in self.chains if each.cuts[-1].ending]
        self.positions = np.unique(np.concatenate(asked))
        self.after = np.append(self.theirs, NONE)[self.positions + 1]
        self.written = np.zeros(len(self.theirs) + 1)
        self.found: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        # Of tokens that came and were mapped, by the map.
        self.came: dict[int, float] = {}

    def _flatten(self) -> None:
        """All cuts of the row one after another, and the terms of their sums as arrays."""
        self.cuts: list[Cut] = [cut for each in self.chains for cut in each.cuts]
        self.tokens: dict[int, int] = {}  # cut before it -> its place in the row
        base = 0
        for each in self.chains:
            self.tokens |= {base + k: place for k, place in enumerate(each.places)}
            base += len(each.cuts)
        columns: list[tuple[np.ndarray, ...]] = [
            (
                np.full(going.tokens.size, number),
                np.full(going.tokens.size, at),
                going.tokens,
                going.firsts,
            )
            for number, cut in enumerate(self.cuts)
            for at, going in cut.parts
        ]
        self.of_cut, self.at, self.u, self.first = _joined(columns, 4)
        self.term = np.full(self.at.size, -np.inf)
        # Tokens that may come at a cut and undo it, and their share.
        self.broken = [np.empty(0, np.int64) for _ in self.cuts]
        self.lost = np.zeros(len(self.cuts))
        self.main = np.array([
            cut.at if cut.at != NONE else max(at for at, _ in cut.parts) for cut in self.cuts
        ])  # fmt: skip

    def take(self, part: slice, logprobs: Tensor) -> None:
        """What was said at positions[part], log-probabilities [r, teacher's ids]."""
        at = self.positions[part] + 1
        inside = at < len(self.theirs)
        rows = np.flatnonzero(inside)
        heard = _gather(logprobs, rows, self.theirs[at[inside]])
        for place, value in zip(at[inside].tolist(), heard.tolist(), strict=True):
            self.written[place + 1] = self.written[place] + value
        here = np.flatnonzero((self.at >= at[0]) & (self.at <= at[-1]))
        self.term[here] = _gather(logprobs, np.searchsorted(at, self.at[here]), self.u[here])
        self._find_broken(at, logprobs)
        asked = [
            number
            for number in self.tokens
            if at[0] <= self.main[number] <= at[-1] and self._is_asked(number)
        ]
        size = max(1, PUSHED_BYTES // (logprobs.element_size() * self.pushing.size))
        totals = self._totals()
        for start in range(0, len(asked), size):
            self._push(asked[start : start + size], at, logprobs, totals)

    def _is_asked(self, number: int) -> bool:
        """Whether there are entries behind this cut but that of the token that came."""
        cut = self.cuts[number]
        if self.mapping is None or cut.given or cut.at == NONE:
            return not cut.given and self.mapping is None
        token = self.own[self.tokens[number]]
        return not self.mapping.alike or self.mapping.targets[self.theirs[cut.at]] == token

    def _find_broken(self, at: np.ndarray, logprobs: Tensor) -> None:
        """Among the LIKELIEST tokens at each cut."""
        asked = [
            number
            for number, cut in enumerate(self.cuts)
            if cut.ending is not None and at[0] <= cut.at <= at[-1]
        ]
        rows = np.searchsorted(at, self.main[asked])
        top = logprobs.topk(min(LIKELIEST, logprobs.shape[1]), dim=-1)
        tokens, values = top.indices.cpu().numpy(), top.values.double().exp().cpu().numpy()
        for number, row in zip(asked, rows, strict=True):
            cut = self.cuts[number]
            assert cut.ending is not None
            breaks = self.pair.breaks(*cut.ending, tokens[row])
            if cut.at < len(self.theirs):
                breaks &= tokens[row] != self.theirs[cut.at]
            self.broken[number], self.lost[number] = tokens[row][breaks], values[row][breaks].sum()

    def _push(self, asked: list[int], at: np.ndarray, logprobs: Tensor, totals: np.ndarray) -> None:
        own = self.own[[self.tokens[number] for number in asked]]
        if self.mapping is not None:
            none = np.empty(0, np.int64)
            rows = np.searchsorted(at, self.main[asked])
            dense = [(i, logprobs[int(row)], none, 0.0) for i, row in enumerate(rows)]
            items = (none, none, np.empty(0))
            ids, probs, came = self.pushing.likeliest(dense, items, own, len(asked), logprobs)
            self.found |= {number: (ids[i], probs[i]) for i, number in enumerate(asked)}
            self.came |= dict(zip(asked, came.tolist(), strict=True))
            return
        dense = []
        for record, number in enumerate(asked):
            cut = self.cuts[number]
            if cut.at != NONE:
                row = logprobs[int(np.searchsorted(at, cut.at))]
                dense.append(
                    (record, row, self.broken[number], self.written[cut.at] - totals[number])
                )
        place = np.full(len(self.cuts), NONE)
        place[asked] = np.arange(len(asked))
        here = np.flatnonzero(place[self.of_cut] != NONE)
        values = np.exp(self.written[self.at[here]] + self.term[here] - totals[self.of_cut[here]])
        items = (place[self.of_cut[here]], self.first[here], values)
        ids, probs, _ = self.pushing.likeliest(dense, items, own, len(asked), logprobs)
        self.found |= {number: (ids[i], probs[i]) for i, number in enumerate(asked)}

    def _totals(self) -> np.ndarray:
        """float64 [cuts]: ln G of each, see align/chain.py; -inf where not all was heard."""
        whole = np.array([cut.at != NONE for cut in self.cuts])
        with np.errstate(divide="ignore"):
            dense = np.where(
                whole, self.written[self.main] + np.log(np.maximum(1.0 - self.lost, LEAST)), -np.inf
            )
        terms = self.written[self.at] + self.term
        top = dense.copy()
        np.maximum.at(top, self.of_cut, terms)
        top = np.maximum(top, -1e300)
        total = np.exp(dense - top)
        np.add.at(total, self.of_cut, np.exp(terms - top[self.of_cut]))
        with np.errstate(divide="ignore"):
            return top + np.log(total)

    def records(self) -> RecordBatch:
        """Of every supervised position, in their order. The token that came has its probability;
        the others what is left where all would sum to more than one."""
        totals = self._totals()
        size, k = self.pushing.size, self.pushing.k
        by_place = {place: number for number, place in self.tokens.items()}
        entries, tails, lengths = [], [], []
        for position in self.wanted:
            number = by_place[int(position) + 1]
            token = int(self.own[position + 1])
            own = float(np.exp(min(0.0, totals[number + 1] - totals[number])))
            own = self.came.get(number, own)
            ids, probs = self.found.get(number, (np.empty(0, np.int64), np.empty(0)))
            kept = np.flatnonzero(probs > 0)[: k - 1]
            ids, probs = ids[kept], probs[kept]
            if (mass := probs.sum()) > 1.0 - own:
                probs = probs * ((1.0 - own) / mass)
            if own > 0.0 or not ids.size:
                ids, probs = np.append(ids, token), np.append(probs, max(own, 1e-14))
            order = np.argsort(-probs, kind="stable")
            with np.errstate(divide="ignore"):
                rest = np.log(max(0.0, 1.0 - probs.sum()))
                entries.append(encoding.encode_logprobs(ids[order], np.log(probs[order]), size))
                tails.append(encoding.encode_tail(np.array([rest]), np.log([probs.sum()])))
            lengths.append(len(ids))
        return RecordBatch(
            {"entries": np.concatenate(entries), "tail": np.stack(tails)}, np.array(lengths)
        )


def _gather(logprobs: Tensor, rows: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """float64 [N]"""
    place = tuple(torch.from_numpy(axis).to(logprobs.device) for axis in (rows, tokens))
    return logprobs[place].double().cpu().numpy()


def _joined(columns: list[tuple[np.ndarray, ...]], width: int) -> list[np.ndarray]:
    if not columns:
        return [np.empty(0, np.int64)] * width
    return [np.concatenate(column).astype(np.int64) for column in zip(*columns, strict=True)]
