"""What every YAML block of ours is: a pydantic model that, given a wrong key, names the right one.

Imports nothing heavy: a block is checked before torch, transformers or a model are touched.
"""

from difflib import get_close_matches
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from axolotl_distill.errors import ConfigError

B = TypeVar("B", bound="Block")


class Block(BaseModel):
    """A YAML mapping that refuses unknown keys and names the nearest right one."""

    model_config = ConfigDict(extra="forbid")

    @model_validator(mode="before")
    @classmethod
    def _no_unknown_keys(cls, values: Any) -> Any:
        if not isinstance(values, dict):
            return values
        for key in values:
            if key not in cls.model_fields:
                near = get_close_matches(str(key), cls.model_fields, n=1)
                hint = f"did you mean `{near[0]}`?" if near else "remove it."
                known = ", ".join(f"`{name}`" for name in cls.model_fields)
                raise ValueError(f"unknown key `{key}`; {hint} Known keys here: {known}")
        return values


def parse_block(model: type[B], values: Any, *prefix: str) -> B:
    """`values` as the block `model`; `prefix` are the keys that lead to it in the file.

    Raises ConfigError with one line a fault: the full key, what was seen and what was expected.
    """
    try:
        return model.model_validate(values)
    except ValidationError as error:
        lines = []
        for fault in error.errors():
            key = ".".join([*prefix, *(str(part) for part in fault["loc"])])
            message = fault["msg"].removeprefix("Value error, ")
            seen = fault["input"]
            shown = "" if isinstance(seen, dict) else f" (got {seen!r})"
            lines.append(f"`{key}`: {message}{shown}" if key else f"{message}{shown}")
        raise ConfigError("\n".join(lines)) from None
