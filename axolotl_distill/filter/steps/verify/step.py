"""The step `verify`: finds answer and reference, has them compared, gives the verdict."""

import logging
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future
from typing import Any

from axolotl_distill.errors import ConfigError
from axolotl_distill.filter.packages import require
from axolotl_distill.filter.step import ALONE, Around, Candidate, Step, Verdict, registered
from axolotl_distill.filter.steps.verify.args import VerifyArgs
from axolotl_distill.filter.steps.verify.questions import question
from axolotl_distill.filter.verify import text
from axolotl_distill.sandbox import GRACE, Failed, Pool, best_here, hide_memory
from axolotl_distill.sandbox.workers import Workers

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
AHEAD = 16  # rows read ahead for each worker, so that one that hangs does not hold up the others


@registered
class VerifyStep(Step[VerifyArgs]):
    """Keeps the rows whose final answer is right, or right enough (`min_score`).

    Reasons: "no answer" (nothing after the thinking), "final answer not found" (`extract`, or a
    block of code), "wrong answer" (score 0), "below min_score", "no reference" (null in this row),
    "unreadable tests", and workers' "verifier timed out", "… ran out of memory", "… crashed",
    "… failed".

    Raises ConfigError for a package that is not installed or a machine that cannot run code, and
    FilterError at the first row without a reference's column.
    """

    kind = "verify"
    Args = VerifyArgs
    remedy = (
        "Look at `rejected/`: is the reference right, and found in the answer? If nearly right "
        "answers are worth learning from, give partial credit (`verify.min_score` below 1), or let "
        "a model grade them (`judge`)."
    )
    scores = True
    column_keys = ("answer", "entry", "entry_point")

    def __init__(self, args: VerifyArgs, around: Around = ALONE):
        super().__init__(args, around)
        if args.method in NEEDS:
            package, extra = NEEDS[args.method]
            require(package, f"verify.method: {args.method}", extra)
        if args.method == "code":
            _check_sandbox()
        self._workers: Pool | None = None

    @classmethod
    def one_of_many(cls, args: VerifyArgs) -> VerifyArgs:
        return args.model_copy(update={"workers": 1})

    def judge(self, rows: Iterable[Candidate]) -> Iterator[Verdict]:
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

    def _begin(self, row: Candidate) -> "Verdict | Future[Any]":
        """What can be said of the row here, or the promise of what a worker will say."""
        method, timeout = self.args.method, self.args.timeout
        asked = question(self.args, row)
        if isinstance(asked, Verdict):
            return asked
        if method in IN_PROCESS:
            return self._verdict(*IN_PROCESS[method](*asked))
        if method == "code":
            # Every test has its own limit; this one is for a sandbox that hangs itself.
            timeout = (timeout + 3 * GRACE) * len(asked[1])
        if self._workers is None:
            self._workers = Workers(
                IN_WORKERS[method],
                count=self.args.workers,
                memory_mb=self.args.memory_mb,
                confined=method != "code",
            )
        return self._workers.submit(*asked, timeout=timeout)

    def _end(self, pending: "Verdict | Future[Any]") -> Verdict:
        if isinstance(pending, Verdict):
            return pending
        answer = pending.result()
        if isinstance(answer, Failed):
            return Verdict(False, f"verifier {answer.reason}", detail=answer.detail)
        return self._verdict(*answer)

    def _verdict(self, score: float, detail: str) -> Verdict:
        if score >= self.args.min_score - 1e-9:
            return Verdict(True, score=score)
        reason = "below min_score" if score > 0.0 else "wrong answer"
        return Verdict(False, reason, score, detail)


def _check_sandbox() -> None:
    """Says once what holds the code of the answers, and what does not."""
    hide_memory()
    sandbox = best_here()
    log.warning("verify.method: code runs what a model wrote, %s", sandbox.caveat())
    outcome = sandbox.run("print('ready')")
    if (outcome.status, outcome.stdout) != ("ok", "ready\n"):
        raise ConfigError(
            f"`verify.method: code`: this machine cannot run code within limits: {outcome.status}, "
            f"{outcome.stderr.strip()[-500:] or 'without a message'}."
        )
