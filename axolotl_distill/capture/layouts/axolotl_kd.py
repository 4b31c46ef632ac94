"""The two field layouts of Axolotl's KD plugin (read in 0.19's integrations/kd/chat_template.py).

In both, what is at a token's place describes that token itself: the plugin takes vLLM's
`prompt_logprobs`, in which row t is about token t, and appends them unshifted. Its trainer then
holds row t against the student's logits of position t, which predict token t + 1: off by one. Here
row t becomes the record of position t − 1.

A list shorter than the text belongs to its end (the plugin pads it on the left); a longer one
belongs to another text and is refused, where the plugin cuts it, from the wrong side.
"""

from collections.abc import Sequence
from typing import Any

from axolotl_distill.capture.layouts.base import Context, Example, Row
from axolotl_distill.capture.layouts.tokens import TokenIds
from axolotl_distill.signal.batch import IGNORE
from axolotl_distill.teachers.top import Pairs


class AxolotlKD:
    """Messages and a field of log-probabilities, whatever `logprobs_field` calls it: lists of
    {token: "token_id:123", logprob} (`load_legacy`), or lists of numbers with their ids in
    `target_token_ids` (`load`). Text, masks and all are the config's chat template's. A row
    without any supervises nothing."""

    renormalised = False
    count = None

    def fits(self, row: Row) -> bool:
        return _field(row) is not None and "input_ids" not in row

    def read(self, row: Row, number: int, context: Context) -> Example:
        name = _field(row)
        given = row[name] if name else []
        rows = _pairs(given, row.get("target_token_ids"), context.tokens)
        input_ids, labels = context.chat(row)
        lacking = len(input_ids) - len(rows)
        if lacking < 0:
            raise ValueError(
                f"`{name}` has {len(rows)} entries, and the config's chat template makes "
                f"{len(input_ids)} tokens of the messages: they were collected on another text or "
                "with another template"
            )
        return _supervised(input_ids, labels, [*[None] * lacking, *rows])


class AxolotlKDPrepared:
    """input_ids, labels, target_token_ids, target_logprobs and target_mask, one a token, as the
    plugin's prepared dataset has them. Probabilities were scaled to sum to one over the kept
    tokens, so the tail is an estimate at T=1 too; they are taken to be at T=1, the plugin's
    default `kd_temperature`."""

    renormalised = True
    count = None

    def fits(self, row: Row) -> bool:
        return {"input_ids", "target_token_ids", "target_logprobs"} <= row.keys()

    def read(self, row: Row, number: int, context: Context) -> Example:
        input_ids = list(row["input_ids"])
        rows = _pairs(row["target_logprobs"], row["target_token_ids"], context.tokens)
        mask = row.get("target_mask") or [[1]] * len(rows)
        expected = [found if any(used) else None for found, used in zip(rows, mask, strict=True)]
        return _supervised(input_ids, list(row["labels"]), expected)


def _supervised(
    input_ids: list[int], labels: Sequence[int], expected: list[Pairs | None]
) -> Example:
    """Tokens that are labels and have log-probabilities; the first token never is one."""
    kept = [
        found if label != IGNORE and found else None
        for label, found in zip(labels, expected, strict=True)
    ]
    return Example(input_ids, [None, *kept[1:]])


def _pairs(
    logprobs: Sequence[Any], ids: Sequence[Any] | None, tokens: TokenIds
) -> list[Pairs | None]:
    if ids is None or not logprobs:
        return [
            found
            and [(tokens.find(one["token"], one.get("bytes")), one["logprob"]) for one in found]
            for found in logprobs
        ]
    if len(ids) != len(logprobs):
        raise ValueError(f"it has {len(logprobs)} lists of log-probabilities and {len(ids)} of ids")
    return [
        found and list(zip(named, found, strict=True))
        for named, found in zip(ids, logprobs, strict=True)
    ]


def _field(row: Row) -> str | None:
    """The field with a list for each token: of mappings with a logprob, or of numbers."""
    for name, value in row.items():
        if name == "target_token_ids" or not isinstance(value, list):
            continue
        first = next((found for found in value if isinstance(found, list) and found), None)
        if first is None:
            continue
        if isinstance(first[0], dict) and "logprob" in first[0]:
            return name
        if isinstance(first[0], float) and "target_token_ids" in row:
            return name
    return None
