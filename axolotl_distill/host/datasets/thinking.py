"""Whether a chat template keeps what a model thinks, and where it stands in the rendered text."""

import math
from collections.abc import Callable
from typing import Any, Final, Literal

from axolotl_distill.errors import ConfigError
from axolotl_distill.trajectories import OPEN, join_thinking, split_thinking

Turn = dict[str, Any]
Render = Callable[[list[Turn]], str]
Form = Literal["apart", "inline"]

DROP: Final = "drop"
WEIGHTS = {"train": 1.0, "mask": 0.0}
SENTINELS = ("qthinkingq", "qanswerq")


def parse_thinking(value: Any, key: str = "datasets[].thinking") -> float | Literal["drop"]:
    """The loss weight of thinking tokens (0 = no label), or "drop": the rows lose their thinking.

    None means train. Raises ConfigError for anything but train, mask, drop or a finite number
    that is not negative.
    """
    if value == DROP:
        return DROP
    if value is None or (isinstance(value, str) and value in WEIGHTS):
        return WEIGHTS[value or "train"]
    try:
        weight = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        weight = math.nan
    if not (math.isfinite(weight) and weight >= 0):
        raise ConfigError(
            f"`{key}: {value}`: expected train (weight 1), mask (weight 0: no label), drop (taken "
            "out of the rows), or the weight of a thinking token's loss, such as 0.3."
        )
    return weight


def parts(turn: Turn, thinking_key: str) -> tuple[str | None, str]:
    """(thinking, answer) of a turn; thinking is None where the turn has none."""
    content = turn.get("content")
    # A turn that only calls tools has no content, and may have thought all the same.
    if turn.get("role") != "assistant" or not isinstance(content, str | None):
        return None, ""
    thinking, answer = split_thinking(content or "", turn.get(thinking_key))
    return thinking or None, answer


def in_form(turn: Turn, form: Form | None, thinking_key: str) -> Turn:
    """A copy of the turn with its thinking where `form` has it: in the content, or apart from it.

    A turn that has it there already, or has none, stays as it is to the letter; one that only
    closes its thinking, since the prompt opened it, and one with other tags get <think>…</think>.
    """
    thinking, answer = parts(turn, thinking_key)
    if thinking is None:
        return dict(turn)
    is_apart = bool(turn.get(thinking_key))
    if is_apart if form == "apart" else (not is_apart and _begins_with_tag(turn["content"])):
        return dict(turn)
    rest = {key: value for key, value in turn.items() if key != thinking_key}
    if form == "apart":
        return {**rest, "content": answer, thinking_key: thinking}
    return {**rest, "content": join_thinking(thinking, answer)}


def _begins_with_tag(content: str) -> bool:
    return content.lstrip().startswith(OPEN)


def without_thinking(turn: Turn, thinking_key: str) -> Turn:
    """A copy of the turn that holds the answer alone."""
    thinking, answer = parts(turn, thinking_key)
    if thinking is None:
        return dict(turn)
    rest = {key: value for key, value in turn.items() if key != thinking_key}
    return {**rest, "content": answer}


def kept_form(render: Render, thinking_key: str) -> Form | None:
    """The form in which a template keeps the thinking of the last turn; "apart" where it keeps
    both, since that is how the model's authors write it, and None where it keeps neither.

    Found by rendering a question and an answer, not by the template's name.
    """
    thinking, answer = SENTINELS
    apart = {"role": "assistant", "content": answer, thinking_key: thinking}
    for form in ("apart", "inline"):
        text = render([{"role": "user", "content": "question"}, in_form(apart, form, thinking_key)])
        if thinking in text and answer in text:
            return form
    return None


def thinking_span(
    render: Render, text: str, turns: list[Turn], index: int, thinking_key: str
) -> tuple[int, int] | None:
    """(start, end) in `text`, which is render(turns), of the thinking of turn `index`; without
    its tags. None where the template dropped it, changed it, or wrote it more than once.
    """
    turn = turns[index]
    thinking, _ = parts(turn, thinking_key)
    if thinking is None:
        return None
    mark = SENTINELS[0]
    if turn.get(thinking_key):
        marked = {**turn, thinking_key: mark}
    else:
        content = turn["content"]
        at = content.index(
            thinking, content.index(OPEN) + len(OPEN) if _begins_with_tag(content) else 0
        )
        marked = {**turn, "content": content[:at] + mark + content[at + len(thinking) :]}
    before, found, after = render([*turns[:index], marked, *turns[index + 1 :]]).partition(mark)
    start, end = len(before), len(text) - len(after)
    fits = text.startswith(before) and text.endswith(after)
    return (start, end) if found and fits and text[start:end].strip() == thinking else None
