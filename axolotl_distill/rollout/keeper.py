"""Puts together what the student wrote in a step and what the teacher said of it, and keeps it."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from distill_kernels.teacher import Teacher as Distribution

from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.rollout.conversation import Conversations
from axolotl_distill.rollout.kept import Graded, Part
from axolotl_distill.rollout.records import records_of
from axolotl_distill.rollout.repack import Prompt
from axolotl_distill.rollout.writer import Completion
from axolotl_distill.store import RecordBatch
from axolotl_distill.store.payloads import join_batches
from axolotl_distill.trajectories.plain import sealed


@dataclass
class _Waiting:
    """A completion whose records are not all there yet."""

    number: int
    prompt: Prompt
    completion: Completion
    parts: list[RecordBatch] = field(default_factory=list)

    @property
    def ids(self) -> list[int]:
        return [*self.prompt.ids, *self.completion.ids]

    @property
    def missing(self) -> int:
        return len(self.completion.ids) - sum(map(len, self.parts))


@dataclass
class Keeper:
    """Keeps the graded completions of one process.

    A completion is known again by its tokens when the teacher is asked about it. One that nobody
    graded, since it was left out of the step, is not kept.

    part           where they go
    conversations  reads prompts as messages
    args           what a record is, see `record_args`
    vocab_size     ids that student and teacher share
    seed           of the run; what is drawn for a record follows from it, the step and the row
    about          what every row says: who wrote it and who graded it
    warn           told once of prompts that are no messages
    """

    part: Part
    conversations: Conversations
    args: CaptureArgs
    vocab_size: int
    seed: int
    rank: int
    about: dict[str, str]
    warn: Callable[[str], None]
    _step: int = 0
    _open: dict[tuple[int, ...], list[_Waiting]] = field(default_factory=dict)
    _done: list[Graded] = field(default_factory=list)
    _said: bool = False

    def expect(self, step: int, written: Sequence[tuple[Prompt, Completion]]) -> None:
        """These are in the micro-batches of optimizer step `step`, and will be graded."""
        self.flush()
        self._step = step
        for number, (prompt, completion) in enumerate(written):
            if completion.ids:
                waiting = _Waiting(number, prompt, completion)
                self._open.setdefault(tuple(waiting.ids), []).append(waiting)

    def heard(self, text: Sequence[int], part: slice, said: Distribution) -> None:
        """What the teacher said of some positions of a text: the `part` of those that predict.

        Raises TrajectoryError when the disk takes it not.
        """
        if not self._open or tuple(text) not in self._open:
            return
        same = self._open[tuple(text)]
        waiting = same[0]
        seed = [self.seed, self._step, self.rank, waiting.number, part.start]
        drawn = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0] >> np.uint64(1))
        waiting.parts.append(records_of(said, self.args, self.vocab_size, drawn))
        if waiting.missing > 0:
            return
        self._done.append(self._row(waiting))
        same.pop(0)
        if not same:
            del self._open[tuple(text)]
        if not self._open:
            self.flush()

    def flush(self) -> None:
        """Write what is graded; what is not never will be."""
        self._open.clear()
        if self._done:
            done, self._done = sorted(self._done, key=lambda row: row.trajectory["meta"]["row"]), []
            self.part.append(done)

    def _row(self, waiting: _Waiting) -> Graded:
        prompt, completion = waiting.prompt.ids, waiting.completion
        messages = self.conversations.messages(prompt)
        meta: dict[str, Any] = {"step": self._step, "rank": self.rank, "row": waiting.number}
        if messages is None:
            messages = [{"role": "user", "content": self.conversations.text(prompt)}]
            meta["prompt"] = "text"
            self._warn_of_text()
        thinking, answer, form = self.conversations.answer(prompt, completion)
        asked = json.dumps(messages, ensure_ascii=False, sort_keys=True)
        prompt_id = hashlib.sha256(asked.encode(errors="surrogatepass")).hexdigest()[:16]
        row = {
            "id": f"{prompt_id}-{self._step}.{self.rank}.{waiting.number}",
            "prompt_id": prompt_id,
            "sample": self._step,
            "messages": messages,
            "tools": None,
            "content": answer,
            "reasoning_content": thinking,
            "thinking_form": form,
            "message": None,
            "finish_reason": "stop" if completion.finished else "length",
            "usage": {"prompt_tokens": len(prompt), "completion_tokens": len(completion.ids)},
            "logprobs": None,
            "teacher": self.about["written by"],
            "meta": {**meta, "graded by": self.about["graded by"]},
        }
        ids = np.asarray(waiting.ids, np.int64)
        return Graded(sealed(row), ids, len(prompt), join_batches(waiting.parts))

    def _warn_of_text(self) -> None:
        if not self._said:
            self._said = True
            self.warn(
                "axolotl-distill: a prompt is not what the tokenizer's chat template makes of "
                "messages (another template, tools, or none); such prompts are kept as one message "
                "with their text, marked `meta.prompt: text`. Their records are right all the same."
            )
