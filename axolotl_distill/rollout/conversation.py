"""The messages of a prompt that is there as tokens, and a completion as an answer to them."""

import re
from collections.abc import Sequence
from typing import Any

from axolotl_distill.rollout.writer import Completion
from axolotl_distill.trajectories.messages import Message
from axolotl_distill.trajectories.thinking import KNOWN, Parts, split

MOST_TURNS = 32
MARKS = "\ue000{}\ue001"
"""Stand for the contents in a rendered template: private characters, which no template changes."""


class Conversations:
    """Reads a tokenizer's chat template backwards.

    A template that is rendered with marks for its contents is a pattern. What a prompt has in
    their places are its messages where, rendered, they give the prompt's tokens again; nothing
    else is taken for them.
    """

    def __init__(self, tokenizer: Any):
        self.tokenizer = tokenizer
        self._between: dict[bool, str] = {}
        self._patterns: dict[tuple[bool, int], re.Pattern[str] | None] = {}

    def messages(self, ids: Sequence[int]) -> list[Message] | None:
        """The messages whose rendering, with the generation prompt, is `ids`; None where there are
        none: no template, another one, tools."""
        if not getattr(self.tokenizer, "chat_template", None):
            return None
        text = self.text(ids)
        for has_system in (False, True):
            if has_system not in self._between:
                self._between[has_system] = self._before_an_answer(has_system)
            # With fewer turns a content would have the markers of a turn in it. The generation
            # prompt is mostly such a marker too.
            count = text.count(self._between[has_system])
            for turns in dict.fromkeys((count + 1, max(1, count))):
                pattern = self._pattern(has_system, min(turns, MOST_TURNS))
                if pattern is None or (found := pattern.fullmatch(text)) is None:
                    continue
                made = _messages(found.groups(), has_system)
                if self._tokens(made) == list(ids):
                    return made
        return None

    def answer(self, prompt: Sequence[int], completion: Completion) -> Parts:
        """Thinking and answer, without special tokens unless they stand around the thinking."""
        end = len(completion.ids) - completion.finished
        tags = {tag for pair in KNOWN for tag in pair[:2]}
        whole = self.tokenizer.decode(completion.ids[:end], skip_special_tokens=False)
        plain = self.tokenizer.decode(completion.ids[:end], skip_special_tokens=True)
        lost = any(tag in whole and tag not in plain for tag in tags)
        opened = self.text(prompt[-32:]).rstrip().endswith(tuple(pair.open for pair in KNOWN))
        return split(whole if lost else plain, opened=opened)

    def text(self, ids: Sequence[int]) -> str:
        return self.tokenizer.decode(ids, skip_special_tokens=False)

    def _before_an_answer(self, has_system: bool) -> str:
        """What a template writes between a question and an answer that is there."""
        marks = [MARKS.format(number) for number in range(3 + has_system)]
        rendered = self._rendered(_messages(marks, has_system)) or ""
        _, _, after = rendered.partition(marks[-3])
        between, mark, _ = after.partition(marks[-2])
        return between if mark and between else MARKS

    def _pattern(self, has_system: bool, turns: int) -> re.Pattern[str] | None:
        key = has_system, turns
        if key not in self._patterns:
            marks = [MARKS.format(number) for number in range(2 * turns - 1 + has_system)]
            rendered = self._rendered(_messages(marks, has_system))
            pattern = None
            if rendered is not None and all(rendered.count(mark) == 1 for mark in marks):
                escaped = re.escape(rendered)
                for mark in marks:
                    escaped = escaped.replace(re.escape(mark), "(.*?)")
                pattern = re.compile(escaped, re.DOTALL)
            self._patterns[key] = pattern
        return self._patterns[key]

    def _rendered(self, messages: list[Message]) -> str | None:
        try:
            return self.tokenizer.apply_chat_template(
                messages, tokenize=False, add_generation_prompt=True
            )
        except Exception:  # whatever a template raises for what it does not take
            return None

    def _tokens(self, messages: list[Message]) -> list[int] | None:
        rendered = self._rendered(messages)
        if rendered is None:
            return None
        return self.tokenizer(rendered, add_special_tokens=False)["input_ids"]


def _messages(contents: Sequence[str], has_system: bool) -> list[Message]:
    roles = ["user", "assistant"] * len(contents)
    names = [*(["system"] if has_system else []), *roles]
    return [
        {"role": role, "content": content} for role, content in zip(names, contents, strict=False)
    ]
