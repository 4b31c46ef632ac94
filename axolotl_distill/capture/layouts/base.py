"""What every layout is turned into, and with what help."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from axolotl_distill.capture.layouts.tokens import TokenIds
from axolotl_distill.teachers.top import Pairs

Row = dict[str, Any]


@dataclass(frozen=True)
class Example:
    """input_ids, and for each of them what the teacher expected there before it came: pairs of
    token id and log-probability. None = not supervised.

    teacher        the model's name, where the row tells
    prompt_tokens  how many the teacher saw before its first own token, where the row tells
    """

    input_ids: list[int]
    expected: list[Pairs | None]
    teacher: str | None = None
    prompt_tokens: int | None = None


@dataclass(frozen=True)
class Context:
    """What a row does not carry itself.

    tokens   token texts to ids
    prompt   messages to the ids of a prompt, the generation prompt included
    chat     a row with messages to (ids, labels), as training with the config would have them

    The last two raise jinja2.TemplateError where the template refuses.
    """

    tokens: TokenIds
    prompt: Callable[[list[Row]], list[int]]
    chat: Callable[[Row], tuple[list[int], list[int]]]


class Layout(Protocol):
    """One way to lay log-probabilities out. `renormalised`: its probabilities were scaled to sum
    to one, so that the tail's mass is lost. `count`: how many examples a row holds; None where
    that is always one, so that rows need not be read to be counted."""

    @property
    def renormalised(self) -> bool: ...

    @property
    def count(self) -> Callable[[Row], int] | None: ...

    def fits(self, row: Row) -> bool:
        """Whether a row looks like this layout."""
        ...

    def read(self, row: Row, number: int, context: Context) -> Example:
        """Raises ValueError or KeyError for a row that cannot be read, and what the context does
        for one that the chat template refuses."""
        ...


@dataclass(frozen=True)
class Completion:
    """The tokens a model wrote, and what it expected at each; whether their ids were found by their
    names."""

    ids: list[int] = field(default_factory=list)
    expected: list[Pairs | None] = field(default_factory=list)
    by_name: bool = False

    def after(self, prompt_ids: list[int], **about: Any) -> Example:
        """The prompt, of which nothing is supervised, and the completion."""
        return Example(
            [*prompt_ids, *self.ids], [*[None] * len(prompt_ids), *self.expected], **about
        )


def without_intruder(own: int, pairs: Pairs) -> Pairs:
    """The list without the sampled token where that is the least likely of it.

    Servers put it into the list whatever its rank, beside the likeliest or in place of the last
    of them. A list whose last entry is not the K-th likeliest would mislead about the tail.

    Raises ValueError for a list that holds a token twice, with two log-probabilities.
    """
    seen: dict[int, float] = {}
    for token, logprob in pairs:
        if seen.setdefault(token, logprob) != logprob:
            raise ValueError(f"one list has token id {token} twice: {seen[token]} and {logprob}")
    if len(pairs) > 1 and min(pairs, key=lambda pair: pair[1])[0] == own:
        return [pair for pair in pairs if pair[0] != own]
    return pairs
