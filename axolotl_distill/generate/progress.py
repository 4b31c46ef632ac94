"""What a run shows while it goes, and at its end."""

import sys
import time
from collections.abc import Sequence

from tqdm import tqdm

from axolotl_distill.config.generate import GenerateArgs
from axolotl_distill.generate.request import Refusal
from axolotl_distill.generate.tally import Counted, Tally, usd
from axolotl_distill.show import printable

# A share of completions cut at the limit that somebody should hear of.
MANY_CUT = 0.1


class Progress:
    """A bar over `total` completions, of which those in `earlier` are there already.

    earlier   counts of all rows in the folder, whichever run made them
    now       counts of this run
    """

    def __init__(self, total: int, to_do: int, earlier: Tally, args: GenerateArgs):
        self._args = args
        self._earlier = earlier
        self.now = Tally()
        self._start = time.monotonic()
        self._bar = tqdm(
            total=total,
            initial=total - to_do,
            unit="completion",
            # In a log file every update is a line.
            mininterval=0.5 if sys.stderr.isatty() else 10.0,
        )

    def add(self, answered: Sequence[Counted], refused: Sequence[Refusal]) -> None:
        for row in answered:
            self.now.add(row)
        self.now.refused += len(refused)
        shown = {"tokens/s": f"{self.now.completion_tokens / self.seconds:,.0f}"}
        if self._args.price:
            shown["cost"] = f"${self.cost:.4f}"
        if self.now.refused:
            shown["refused"] = str(self.now.refused)
        self._bar.set_postfix(shown, refresh=False)
        self._bar.update(len(answered))

    @property
    def seconds(self) -> float:
        return max(time.monotonic() - self._start, 1e-9)

    @property
    def cost(self) -> float:
        """USD for all rows in the folder, where there is a `price`."""
        assert self._args.price is not None
        prompt = self._earlier.prompt_tokens + self.now.prompt_tokens
        completion = self._earlier.completion_tokens + self.now.completion_tokens
        return usd(prompt, completion, self._args.price)

    @property
    def nothing_but_refusals(self) -> int:
        """How many requests were refused while not one was ever answered."""
        answered = self._earlier.completions + self.now.completions
        return 0 if answered else self.now.refused

    def close(self) -> None:
        self._bar.close()

    def summary(self) -> str:
        """Lines for the terminal, about this run; cost and budget are the whole folder's."""
        now = self.now
        lines = []
        if now.completions:
            reasons = now.finish_reasons.most_common()
            ends = ", ".join(f"{printable(name, 40)} {count}" for name, count in reasons)
            lines.append(f"{now.completions} new completions; they ended with: {ends}")
        if counted := now.completions - now.without_usage:
            lines.append(
                f"tokens, on average: prompt {now.prompt_tokens / counted:.1f}, completion "
                f"{now.completion_tokens / counted:.1f}; {now.completion_tokens:,} written in "
                f"{self.seconds:.1f} s ({now.completion_tokens / self.seconds:,.1f} a second)"
            )
        if now.without_usage:
            lines.append(f"{now.without_usage} came without a count of their tokens")
        if self._args.price:
            lines.append(f"cost of all in the folder: ${self.cost:.4f}")
        lines += self._notes()
        cut = sum(now.ended("cut").values())
        if cut > MANY_CUT * now.completions:
            lines.append(
                f"note: {cut} of {now.completions} were cut at `max_tokens: "
                f"{self._args.max_tokens}` and may lack their answer"
            )
        return "\n".join(lines)

    def _notes(self) -> list[str]:
        """What is kept as it came, and that somebody should know of."""
        marks = self.now.marks
        notes = [
            (marks["calls"], "call tools (`message.tool_calls`)"),
            (marks["refusal"], "are refusals (`message.refusal`), without any other answer"),
            (marks["no answer"], "have thinking and no answer; `format` takes them out"),
            (
                marks["closing tag"],
                "close a thinking that they do not open, as if the chat template had opened it; "
                "they are split there. If that is wrong, set `generate.thinking_opened: false`",
            ),
        ]
        lines = [f"note: {count} {text}" for count, text in notes if count]
        for name, count in (self.now.ended("unknown") | self.now.ended("withheld")).items():
            lines.append(
                f"note: {count} ended with `{name}`, which is not known to mean that the answer is "
                "whole; `format` takes them out unless `finished: false`"
            )
        return lines
