"""vLLM's answers, one a line: of /v1/completions and of /v1/chat/completions.

`prompt_token_ids` and `token_ids` (asked for with `return_token_ids: true`) say which tokens
there are; without them the prompt is the chat template's on `messages`, and written tokens are
read by name.

What was written, with `logprobs`, is supervised. Where there is none, the prompt is, with its
`prompt_logprobs`: row t describes token t, and the first token, which nothing predicts, has none.
"""

from typing import Any

from axolotl_distill.capture.layouts.base import (
    Completion,
    Context,
    Example,
    Row,
    without_intruder,
)
from axolotl_distill.capture.layouts.chat import read_content
from axolotl_distill.capture.layouts.tokens import TokenIds, is_id
from axolotl_distill.teachers.engines import prompt_rows


class VLLMAnswers:
    """The answer itself, or one under `response` beside the request's `messages`."""

    renormalised = False

    def fits(self, row: Row) -> bool:
        answer = row.get("response") or row
        choices = answer.get("choices") or [{}]
        return bool(
            answer.get("prompt_logprobs")
            or answer.get("prompt_token_ids")
            or choices[0].get("prompt_logprobs")
            or choices[0].get("prompt_token_ids")
            or "tokens" in (choices[0].get("logprobs") or {})
        )

    def count(self, row: Row) -> int:
        return len((row.get("response") or row)["choices"])

    def read(self, row: Row, number: int, context: Context) -> Example:
        answer = row.get("response") or row
        choice = answer["choices"][number]
        # Completions have these in each choice, chat completions beside the choices.
        prompt_ids, prompt_logprobs = (
            choice.get(name) or answer.get(name) for name in ("prompt_token_ids", "prompt_logprobs")
        )
        if prompt_ids is None:
            if not row.get("messages"):
                raise ValueError(
                    "it has neither `prompt_token_ids` nor `messages`, so its prompt is not known. "
                    "Ask vLLM with `return_token_ids: true`"
                )
            prompt_ids = context.prompt(row["messages"])
        written = _written(choice, context.tokens)
        if written.ids:
            # Completions have `text`, chat completions a message.
            said = choice.get("message") or choice
            context.tokens.check_spelling(written.ids, said, written.by_name)
            return written.after(
                prompt_ids,
                teacher=answer.get("model"),
                prompt_tokens=(answer.get("usage") or {}).get("prompt_tokens"),
            )
        expected = prompt_rows(prompt_logprobs or [None] * len(prompt_ids))
        if len(expected) != len(prompt_ids):
            raise ValueError(
                f"it has {len(expected)} rows of `prompt_logprobs` for {len(prompt_ids)} tokens"
            )
        pairs = [
            found and without_intruder(own, found)
            for own, found in zip(prompt_ids, expected, strict=True)
        ]
        return Example(list(prompt_ids), [None, *pairs[1:]], teacher=answer.get("model"))


def _written(choice: dict[str, Any], tokens: TokenIds) -> Completion:
    logprobs = choice.get("logprobs") or {}
    if logprobs.get("content"):
        return read_content(logprobs["content"], tokens)
    written = Completion(by_name=any(not is_id(name) for name in logprobs.get("tokens") or []))
    columns = (logprobs.get(name) or [] for name in ("tokens", "token_logprobs", "top_logprobs"))
    for token, logprob, listed in zip(*columns, strict=True):
        own = tokens.find(token)
        pairs = [(tokens.find(name), value) for name, value in (listed or {}).items()]
        written.ids.append(own)
        written.expected.append(without_intruder(own, pairs or [(own, logprob)]))
    return written
