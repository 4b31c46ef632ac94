"""The step `verify`: finds answer and reference, has them compared, gives the verdict."""

import contextlib
import json
import logging
import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from dataclasses import asdict
from typing import Any

from axolotl_distill.config.verify import VerifyArgs
from axolotl_distill.errors import ConfigError, FilterError
from axolotl_distill.filter.packages import require
from axolotl_distill.filter.step import Verdict
from axolotl_distill.filter.verify import extract, text
from axolotl_distill.filter.verify.blocks import last_block
from axolotl_distill.filter.verify.tests import UnreadableTests, read_tests
from axolotl_distill.sandbox import GRACE, hide_memory, missing_walls, run_python
from axolotl_distill.sandbox.workers import Failed, Workers
from axolotl_distill.trajectories.journal import Row
from axolotl_distill.trajectories.thinking import parts_of

log = logging.getLogger(__name__)

HERE = "axolotl_distill.filter.verify"
IN_PROCESS = {"exact": text.exact, "numeric": text.numeric}
IN_WORKERS = {
    "math": f"{HERE}.math:score",
    "regex": f"{HERE}.text:pattern",
    "reasoning_gym": f"{HERE}.reasoning_gym:score",
    "code": f"{HERE}.code:score",
}
NEEDS = {
    "math": ("math_verify", "filter"),
    "reasoning_gym": ("reasoning_gym", "tasks"),
}
Question = tuple[Any, Any, dict[str, Any]]  # what a method's function takes
AHEAD = 16  # rows read ahead for each worker, so that one that hangs does not hold up the others


class VerifyStep:
    """Keeps the rows whose final answer is right, or right enough (`min_score`).

    Reasons: "no answer" (nothing after the thinking), "final answer not found" (`extract`, or a
    block of code), "wrong answer" (score 0), "below min_score", "no reference" (null in this row),
    "unreadable tests", and workers' "verifier timed out", "… ran out of memory", "… crashed",
    "… failed".

    Raises ConfigError for a package that is not installed or a machine that cannot run code, and
    FilterError at the first row without a reference's column.
    """

    name = "verify"
    row_wise = True

    def __init__(self, args: VerifyArgs):
        self.args = args
        if args.method in NEEDS:
            package, extra = NEEDS[args.method]
            require(package, f"verify.method: {args.method}", extra)
        if args.method == "code":
            _check_sandbox()
        self._workers: Workers | None = None

    def judge(self, rows: Iterable[Row]) -> Iterator[Verdict]:
        """One verdict a row, in order; reads at most `AHEAD` rows a worker ahead."""
        pending: deque[Verdict | Future[Any]] = deque()
        limit = AHEAD * self.args.workers if self.args.method in IN_WORKERS else 1
        for row in rows:
            pending.append(self._begin(row))
            while pending and (
                len(pending) >= limit or isinstance(pending[0], Verdict) or pending[0].done()
            ):
                yield self._end(pending.popleft())
        while pending:
            yield self._end(pending.popleft())

    def close(self) -> None:
        if self._workers is not None:
            self._workers.close()
            self._workers = None

    def _begin(self, row: Row) -> "Verdict | Future[Any]":
        """What can be said of the row here, or the promise of what a worker will say."""
        answer = parts_of(row).answer.strip()
        if not answer:
            return Verdict(False, "no answer")
        meta = row.get("meta") or {}
        method = self.args.method
        timeout = self.args.timeout
        if method == "code":
            question = self._code_question(answer, meta)
        elif method == "reasoning_gym":
            question = self._task_question(answer, meta)
        else:
            question = self._text_question(answer, meta)
        if isinstance(question, Verdict):
            return question
        if method in IN_PROCESS:
            return self._verdict(*IN_PROCESS[method](*question))
        if method == "code":
            # Every test has its own limit; this one is for a sandbox that hangs itself.
            timeout = (timeout + 3 * GRACE) * len(question[1])
        if self._workers is None:
            self._workers = Workers(
                IN_WORKERS[method],
                count=self.args.workers,
                memory_mb=self.args.memory_mb,
                confined=method != "code",
            )
        return self._workers.submit(*question, timeout=timeout)

    def _end(self, pending: "Verdict | Future[Any]") -> Verdict:
        if isinstance(pending, Verdict):
            return pending
        answer = pending.result()
        if isinstance(answer, Failed):
            return Verdict(False, answer.reason, detail=answer.detail)
        return self._verdict(*answer)

    def _verdict(self, score: float, detail: str) -> Verdict:
        if score >= self.args.min_score - 1e-9:
            return Verdict(True, score=score)
        reason = "below min_score" if score > 0.0 else "wrong answer"
        return Verdict(False, reason, score, detail)

    def _text_question(self, answer: str, meta: dict[str, Any]) -> "Question | Verdict":
        args = self.args
        options = args.model_dump(include={"tolerance", "absolute_tolerance", "ignore", "pattern"})
        if args.method == "regex" and "{answer}" not in args.pattern:
            references = []
        else:
            values = columns(meta, args.columns)
            parts = [part for value in values for part in _as_list(value)]
            references = [
                reference
                for part in parts
                if part is not None
                for reference in extract.candidates(_as_text(part), args.answer_extract)[-1:]
            ]
            if not references or len(references) < len(parts):
                return Verdict(False, "no reference", detail=repr(values)[:200])
        found = extract.candidates(
            answer, args.extract or ("whole" if args.method == "regex" else "auto")
        )
        options["in_prose"] = False
        if args.method == "math" and args.extract in (None, "auto") and len(references) == 1:
            # math-verify knows more ways in which an answer is put in prose than `auto` does.
            marked = extract.candidates(answer, "tag:answer") or extract.boxed(answer)
            found, options["in_prose"] = marked or [answer], not marked
        if not found:
            return Verdict(False, "final answer not found", detail=answer[-200:])
        if args.method != "regex":
            found = extract.parts(found, len(references))
        return found, references, options

    def _task_question(self, answer: str, meta: dict[str, Any]) -> "Question | Verdict":
        """The whole entry as reasoning-gym made it, its objects perhaps as JSON text."""
        if self.args.entry:
            entry = _from_json(columns(meta, [self.args.entry])[0])
        else:
            columns(meta, ["answer", "metadata"])
            entry = {key: meta[key] for key in ("question", "answer", "metadata") if key in meta}
        if isinstance(entry, dict):
            entry = {**entry, "metadata": _from_json(entry.get("metadata"))}
        if not isinstance(entry, dict) or not isinstance(entry["metadata"], dict):
            return Verdict(False, "no reference", detail=f"no reasoning-gym entry: {entry!r}"[:200])
        dataset = self.args.dataset or entry["metadata"].get("source_dataset")
        if dataset is None:
            raise FilterError(
                "`verify.method: reasoning_gym` cannot tell whose scorer to use: the entry's "
                f"metadata has {', '.join(entry['metadata']) or 'nothing'}, and no "
                "`source_dataset`. Name it with `verify.dataset`."
            )
        found = extract.candidates(answer, self.args.extract or "auto")
        if not found:
            return Verdict(False, "final answer not found", detail=answer[-200:])
        return found, entry, {"dataset": dataset}

    def _code_question(self, answer: str, meta: dict[str, Any]) -> "Question | Verdict":
        (tests,) = columns(meta, self.args.columns)
        function = None
        if self.args.entry_point:
            (function,) = columns(meta, [self.args.entry_point])
        if not tests:
            return Verdict(False, "no reference")
        code = last_block(answer)
        if code is None:
            return Verdict(False, "final answer not found", detail="no fenced block of Python")
        try:
            cases = read_tests(tests, function)
        except UnreadableTests as error:
            return Verdict(False, "unreadable tests", detail=str(error))
        options = {
            "seconds": self.args.timeout,
            "memory_mb": self.args.memory_mb,
            "min_score": self.args.min_score,
        }
        return code, [asdict(case) for case in cases], options


def columns(meta: dict[str, Any], names: list[str]) -> list[Any]:
    """The values of a row's columns. Raises FilterError for one that the row does not have."""
    for name in names:
        if name not in meta:
            raise FilterError(
                f"`verify` reads the column {name!r} of the prompt's row, and this row has "
                f"{', '.join(sorted(meta)) or 'no columns'}. Name the column with the reference "
                "in `verify.answer` (reasoning_gym: `verify.entry`)."
            )
    return [meta[name] for name in names]


def _check_sandbox() -> None:
    """Says once what holds the code of the answers, and what does not."""
    hide_memory()
    missing = missing_walls()
    if missing:
        log.warning(
            "verify.method: code runs what a model wrote, within limits on time, memory, processes "
            "and files that are NO security boundary, for %s. It can use the network, read what "
            "its user may read (%s), and leave files and shared memory behind. Install bubblewrap "
            "where namespaces are allowed, or run this in a container or on a throw-away machine.",
            missing,
            "one of its own"
            if os.geteuid() == 0
            else "yours: also the keys in the environment of processes other than this one",
        )
    else:
        log.warning(
            "verify.method: code runs what a model wrote, in bubblewrap: without network, other "
            "processes and your files. The kernel is shared, so this is NO security boundary like "
            "a throw-away machine."
        )
    outcome = run_python("print('ready')")
    if (outcome.status, outcome.stdout) != ("ok", "ready\n"):
        raise ConfigError(
            f"`verify.method: code`: this machine cannot run code within limits: {outcome.status}, "
            f"{outcome.stderr.strip()[-500:] or 'without a message'}."
        )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _from_json(value: Any) -> Any:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value
