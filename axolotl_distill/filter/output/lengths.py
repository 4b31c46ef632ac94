"""How many tokens the rows have: counts, table, plot."""

from array import array
from pathlib import Path
from typing import Any

import numpy as np

from axolotl_distill.filter.args import FilterArgs
from axolotl_distill.filter.conversation import conversation
from axolotl_distill.filter.packages import require
from axolotl_distill.filter.parts import part
from axolotl_distill.filter.tokens import count_tokens, load_tokenizer, render
from axolotl_distill.show import printable
from axolotl_distill.trajectories.row import Trajectory

PARTS = ("total", "prompt", "thinking", "answer")
BATCH = 256


class Lengths:
    """Counts tokens of rows. "total" is the whole conversation as the tokenizer's chat template
    writes it; "prompt", "thinking" and "answer" are their plain texts.

    Raises ConfigError where there is no such tokenizer, or nothing to plot with.
    """

    def __init__(self, args: FilterArgs):
        require("matplotlib", "filter.tokenizer")
        self.args = args
        self.tokenizer = load_tokenizer(args.tokenizer)
        self.counts = {name: array("q") for name in PARTS}
        self.thinking_lost = 0
        self._waiting: list[Trajectory] = []
        self._checked: set[tuple[str, ...]] = set()

    def check(self, row: Trajectory) -> None:
        """Raises FilterError where the chat template refuses these roles in this order."""
        roles = tuple(message["role"] for message in row["messages"])
        if roles not in self._checked:
            self._rendered(row)
            self._checked.add(roles)

    def add(self, row: Trajectory) -> None:
        """Counts a row that is kept."""
        self._waiting.append(row)
        if len(self._waiting) == BATCH:
            self._count()

    def _count(self) -> None:
        rows, self._waiting = self._waiting, []
        if not rows:
            return
        texts = {name: [part(row, name) for row in rows] for name in PARTS[1:]}
        texts["total"] = [self._rendered(row) for row in rows]
        if self.args.reasoning != "drop":
            self.thinking_lost += sum(
                thinking not in total
                for thinking, total in zip(texts["thinking"], texts["total"], strict=True)
            )
        for name in PARTS:
            self.counts[name].extend(count_tokens(self.tokenizer, texts[name]))

    def _rendered(self, row: Trajectory) -> str:
        messages = conversation(row, self.args.reasoning, self.args.system)
        if self.args.format != "messages" or self.tokenizer.chat_template is None:
            return "\n".join(message["content"] for message in messages)
        return render(self.tokenizer, messages, row, tokenize=False)

    def summary(self) -> dict[str, Any]:
        """min, p50, p90, p99, max and sum of every part, and the share past `sequence_len`."""
        self._count()
        found: dict[str, Any] = {}
        for name, values in self.counts.items():
            counts = np.asarray(values, np.int64)
            # A row without thinking says nothing about how long thinking is.
            present = counts[counts > 0]
            if not present.size:
                continue
            p50, p90, p99 = np.percentile(present, [50, 90, 99])
            found[name] = {
                "rows": int(present.size),
                "min": int(present.min()),
                "p50": float(p50),
                "p90": float(p90),
                "p99": float(p99),
                "max": int(present.max()),
                "sum": int(present.sum()),
            }
        limit = self.args.sequence_len
        total = np.asarray(self.counts["total"], np.int64)
        past = {} if limit is None or not total.size else {"past": float((total > limit).mean())}
        return {
            "tokenizer": self.args.tokenizer,
            "sequence_len": limit,
            **past,
            "thinking_lost": self.thinking_lost,
            "parts": found,
        }

    def plot(self, path: Path) -> None:
        """The distribution as a PNG, with sequence_len marked."""
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot, ticker

        figure, axes = pyplot.subplots(figsize=(9, 4.5), constrained_layout=True)
        longest, limit = max(self.counts["total"], default=0) or 1, self.args.sequence_len
        edges = np.linspace(0, longest, 61)
        for name, colour in (("total", "C0"), ("thinking", "C1"), ("answer", "C2")):
            values = [count for count in self.counts[name] if count]
            if values:
                label = f"{name}, {len(values):,} rows"
                axes.hist(
                    values,
                    edges.tolist(),
                    histtype="step",
                    linewidth=1.6,
                    color=colour,
                    label=label,
                )
        if limit is not None and limit <= 2 * longest:
            axes.axvline(limit, color="black", linestyle="--", label=f"sequence_len {limit:,}")
        elif limit is not None:
            # Drawn so far to the right, it would leave no room for the rows.
            axes.plot([], [], "k--", label=f"sequence_len {limit:,}\n(further right)")
        name = printable(Path(self.args.tokenizer or "").name, 40)
        axes.set_title(f"Tokens of the rows, as {name} counts them", parse_math=False)
        axes.set_xlabel("tokens in a row")
        axes.set_ylabel(f"rows (in each {edges[1]:,.3g} tokens)")
        axes.set_xlim(left=0)
        axes.xaxis.set_major_locator(ticker.MaxNLocator(8, integer=True))
        axes.yaxis.set_major_locator(ticker.MaxNLocator(6, integer=True))
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(ticker.StrMethodFormatter("{x:,.0f}"))
        axes.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
        axes.grid(alpha=0.25)
        figure.savefig(path, dpi=120, metadata={"Software": None})
        pyplot.close(figure)
