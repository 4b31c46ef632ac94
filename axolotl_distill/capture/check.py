"""What the records of a teacher with another tokenizer are worth, by a few rows, before all of them
are made."""

from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

import numpy as np
from tqdm import tqdm

from axolotl_distill.align import Pair, Segment, pair_rows
from axolotl_distill.align.spans import align
from axolotl_distill.align.survey import Survey
from axolotl_distill.capture.cross import TEACHER_IDS, TEACHER_LABELS, CrossSource
from axolotl_distill.capture.oracle import Oracle, Prompt, held
from axolotl_distill.capture.source import Row, Source
from axolotl_distill.errors import CaptureError
from axolotl_distill.signal.batch import supervised_positions
from axolotl_distill.store import encoding
from axolotl_distill.store.schema import Check

ROWS, PLACES, SHOWN = 8, 10, 4


def checked(rows: Sequence[Row], source: Source) -> tuple[Check, list[tuple[int, float]]]:
    """(rows, tokens, and the share of the teacher's probability that their records carry;
    (the student's token, its share) where it is least). Asks the teacher for ROWS rows."""
    chosen = dict(_some(rows))
    tokens: list[int] = []
    carried: list[np.ndarray] = []
    for index, records in source.records(chosen, set(chosen)):
        own = np.asarray(chosen[index]["input_ids"])
        tokens += own[supervised_positions(chosen[index]["labels"]) + 1].tolist()
        carried.append(1.0 - np.exp(encoding.decode_tail(records.tail[:, 0])))
    shares = np.clip(np.concatenate(carried), 0.0, 1.0)
    by_token: dict[int, list[float]] = {}
    for token, share in zip(tokens, shares.tolist(), strict=True):
        by_token.setdefault(token, []).append(share)
    means = sorted((float(np.mean(each)), token) for token, each in by_token.items())
    found = Check(rows=len(chosen), tokens=len(tokens), carried=float(shares.mean()))
    return found, [(token, share) for share, token in means[:SHOWN]]


def hold(
    check: Check, rows: Sequence[Row], source: CrossSource, survey: Survey, samples: int
) -> None:
    """Records held to what the teacher writes at places of the rows: says in `check` at how many
    `places`, by how many `samples` each, the share of them `within` what the records may give
    (store/counts.py), and the mean `error`. A place is a cut of both that follows from the text
    before it; where there is none that can be counted it is said that there are 0."""
    oracle = Oracle(source.teacher, source.pair, survey, {"record": source.mapping})
    found: list[dict[str, Any]] = []
    with tqdm(total=PLACES, unit=" places", desc="checking", delay=3.0) as shown:
        for prompt in _prompts([row for _, row in _some(rows)], source.pair):
            # The teacher may end there, or the student cut elsewhere whatever it writes.
            with suppress(CaptureError):
                found.append(oracle.compare_at(prompt, samples))
                shown.update()
            if len(found) == PLACES:
                break
    check["places"], check["samples"] = len(found), samples
    if not found:
        return
    about = held(found, "record")
    check["within"], check["error"] = about["within"], about["error"]


def _some(rows: Sequence[Row]) -> Iterator[tuple[int, Row]]:
    """ROWS of them, evenly spaced, that have a supervised token."""
    left = ROWS
    # Four times as many are looked at: some supervise nothing.
    spaced = np.unique(np.linspace(0, len(rows) - 1, 4 * ROWS).astype(int)).tolist()
    for index in [*spaced[::4], *spaced[2::4], *spaced[1::2]]:
        row = rows[index]
        if left and supervised_positions(row["labels"]).size:
            left -= 1
            yield index, row


def _prompts(rows: Sequence[Row], pair: Pair) -> Iterator[Prompt]:
    """Those before a numeral first, where maps of vocabularies fail; then at places drawn."""
    numerals: list[tuple[Row, Segment, int, int]] = []
    others: list[tuple[Row, Segment, int, int]] = []
    for row in rows:
        theirs, own = row[TEACHER_IDS], row["input_ids"]
        answers = pair_rows(
            theirs, row[TEACHER_LABELS], own, row["labels"], pair.teacher, pair.student
        )
        for segment in (s for answer in answers for s in answer if not s.special):
            t0, s0 = segment.teacher[0], segment.student[0]
            lengths = [
                pair.teacher.lengths[theirs[slice(*segment.teacher)]],
                pair.student.lengths[own[slice(*segment.student)]],
            ]
            for side, lead in zip(lengths, (segment.lead, segment.student_lead), strict=True):
                side[0] -= len(lead)
            if min(side[0] for side in lengths) <= 0:
                continue
            spans = align(*lengths)
            for there, here in zip(spans.teacher[1:-1], spans.student[1:-1], strict=True):
                is_numeral = pair.student.bytes_of[own[s0 + here]].strip()[:1].isdigit()
                place = (row, segment, int(t0 + there), int(s0 + here))
                (numerals if is_numeral else others).append(place)
    rng = np.random.default_rng(0)
    for kind in (numerals, others):
        for number in rng.permutation(len(kind)):
            row, segment, there, here = kind[number]
            theirs, own = list(row[TEACHER_IDS]), list(row["input_ids"])
            t0, s0 = segment.teacher[0], segment.student[0]
            prompt = Prompt(theirs[:t0], theirs[t0:there], own[:s0], own[s0:here])
            if _is_cut_so(prompt, pair):
                yield prompt


def _is_cut_so(prompt: Prompt, pair: Pair) -> bool:
    """Whether each cuts the text before the place as it does in the row."""
    for pieces, ids in ((pair.teacher, prompt.theirs), (pair.student, prompt.own)):
        try:
            text = pieces.spell(ids).decode()
        except UnicodeDecodeError:
            return False
        if pieces.cut([text])[0] != ids:
            return False
    return True
