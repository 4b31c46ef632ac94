"""Exact and near duplicates. The first of those that say the same is kept."""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from hashlib import blake2b
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from axolotl_distill.config.block import Block, ReadBy
from axolotl_distill.filter.packages import require
from axolotl_distill.filter.parts import calls_text, part, plain, tools_text
from axolotl_distill.filter.step import (
    ALONE,
    KEEP,
    Around,
    Candidate,
    Step,
    Verdict,
    Where,
    registered,
)

PERMUTATIONS = 128
SHINGLE = 5
# Signs count: 2+2 and 2-2 differ. Scripts without spaces have no words; there a character is one.
WORD = re.compile(r"[぀-ヿ㐀-鿿]|\w+|[^\w\s]")


def shingles(text: str) -> set[str]:
    """Runs of five words; the whole text where it has fewer."""
    words = WORD.findall(text.casefold())
    last = max(1, len(words) - SHINGLE + 1)
    return {" ".join(words[at : at + SHINGLE]) for at in range(last)}


class DeduplicateArgs(Block):
    """Of rows that say the same, the first is kept."""

    method: Literal["exact", "near"] = Field(
        "exact",
        description="exact: up to white space. near: Jaccard similarity of word 5-grams, by "
        "MinHash.",
    )
    threshold: Annotated[float, ReadBy("method", "near")] = Field(
        0.8, gt=0.0, lt=1.0, description="near: similarity of a duplicate."
    )
    of: Literal["all", "thinking", "answer", "prompt"] = Field(
        "all",
        description="prompt: all rows of a prompt go when an earlier prompt says the same.",
    )
    within: Annotated[Literal["prompt", "dataset"], ReadBy("of", unless=("prompt",))] = Field(
        "prompt",
        description="Compare with rows of the same prompt, or with all; prompts always with all.",
    )


class Seen(Protocol):
    """Texts met so far."""

    reason: str

    def like(self, text: str, scope: str, key: str) -> str:
        """Who said the same before in this scope, and how like; else "", and it counts as seen."""
        ...


class ExactSeen:
    """Texts met so far, up to white space."""

    reason = "duplicate"

    def __init__(self) -> None:
        self.first: dict[bytes, str] = {}

    def like(self, text: str, scope: str, key: str) -> str:
        words = f"{scope}\0{' '.join(text.split())}"
        first = self.first.setdefault(blake2b(words.encode(), digest_size=16).digest(), key)
        return "" if first == key else f"the same as {first}"


class NearSeen:
    """MinHashes met so far, held to the Jaccard similarity that they estimate.

    In a scope of its own a text is compared with all of that scope: the completions of a prompt
    are few. In the dataset's scope, "", datasketch's index gives the candidates.
    """

    reason = "near duplicate"

    def __init__(self, threshold: float) -> None:
        from datasketch import MinHash, MinHashLSH

        self.threshold = threshold
        # Candidates are checked below, so a missed one weighs more than one too many.
        self.index = MinHashLSH(threshold, PERMUTATIONS, weights=(0.1, 0.9))
        self.empty = MinHash(PERMUTATIONS)
        self.hashes: dict[str, dict[str, Any]] = defaultdict(dict)

    def like(self, text: str, scope: str, key: str) -> str:
        from datasketch import LeanMinHash

        made = self.empty.copy()
        made.update_batch([shingle.encode() for shingle in sorted(shingles(text))])
        mine, others = LeanMinHash(made), self.hashes[scope]
        candidates = others if scope else self.index.query(mine)
        best, nearest = max(
            ((mine.jaccard(others[other]), other) for other in candidates), default=(0.0, "")
        )
        if best >= self.threshold:
            return f"{best:.0%} like {nearest}"
        others[key] = mine
        if not scope:
            self.index.insert(key, mine, check_duplication=False)
        return ""


@registered
class DeduplicateStep(Step[DeduplicateArgs]):
    """Drops a row that says what an earlier one said, or all rows of a prompt that does.

    What is kept stays in memory: a hash of 16 bytes a text (exact), about 1 kB (near, within a
    prompt) or 6 kB (near, within the dataset), as measured with datasketch 2.0.

    Reasons: "duplicate", "near duplicate", "duplicate prompt", "near duplicate prompt".
    """

    kind = "deduplicate"
    Args = DeduplicateArgs
    remedy = (
        "The teacher repeats itself: a higher `generate.temperature` or fewer completions a "
        "prompt; or raise `threshold`."
    )

    def __init__(self, args: DeduplicateArgs, around: Around = ALONE):
        super().__init__(args, around)
        if args.method == "near":
            require("datasketch", f"filter.steps: {around.name}")

    @classmethod
    def where(cls, args: DeduplicateArgs) -> Where:
        return Where.HERE

    def judge(self, rows: Iterable[Candidate]) -> Iterator[Verdict]:
        seen = ExactSeen() if self.args.method == "exact" else NearSeen(self.args.threshold)
        return self._prompts(rows, seen) if self.args.of == "prompt" else self._rows(rows, seen)

    def _rows(self, rows: Iterable[Candidate], seen: Seen) -> Iterator[Verdict]:
        for number, row in enumerate(rows):
            scope = row["prompt_id"] if self.args.within == "prompt" else ""
            text = part(row, self.args.of)
            if self.args.of != "thinking":
                text += calls_text(row)
            detail = seen.like(text, scope, f"{row['id']} (row {number})")
            yield Verdict(False, seen.reason, detail=detail) if detail else KEEP

    def _prompts(self, rows: Iterable[Candidate], seen: Seen) -> Iterator[Verdict]:
        verdicts: dict[str, Verdict] = {}
        for row in rows:
            prompt = row["prompt_id"]
            if prompt not in verdicts:
                detail = seen.like(plain(part(row, "prompt") + tools_text(row)), "", prompt)
                reason = f"{seen.reason} prompt"
                verdicts[prompt] = Verdict(False, reason, detail=detail) if detail else KEEP
            yield verdicts[prompt]
