"""The recipe's file, which `generate` and `filter` share."""

from pathlib import Path

from pydantic import field_validator, model_validator

from axolotl_distill.config.block import Block, parse_block
from axolotl_distill.config.generate import GenerateArgs
from axolotl_distill.config.teacher import TeacherArgs, refuse_beside
from axolotl_distill.config.yaml_file import read_yaml
from axolotl_distill.errors import ConfigError
from axolotl_distill.filter.args import FilterArgs


class Recipe(Block):
    """Who writes, what is generated, what is kept. One file for both commands; each needs only
    the blocks that it reads."""

    teacher: TeacherArgs | None = None
    generate: GenerateArgs | None = None
    filter: FilterArgs | None = None

    @field_validator("teacher")
    @classmethod
    def _writes(cls, teacher: TeacherArgs | None) -> TeacherArgs | None:
        if teacher is not None and teacher.tempered != 1.0:
            raise ValueError(
                "`tempered` is for a teacher that grades: one that writes would write at that "
                "temperature. Serve the original model, and set `generate.temperature`."
            )
        if teacher is not None and teacher.tokenizer is not None:
            raise ValueError(
                "`tokenizer` is read beside a student with another one (`distill.cross_tokenizer`) "
                "only. Remove it: what a teacher writes is text."
            )
        return None if teacher is None else refuse_beside(teacher)

    @model_validator(mode="after")
    def _ends(self) -> "Recipe":
        local = self.teacher is not None and self.teacher.server is None
        if local and self.generate is not None and self.generate.max_tokens is None:
            raise ValueError(
                "`generate.max_tokens` is needed for a teacher without `server`: null leaves the "
                "limit to the server."
            )
        return self

    @property
    def rows(self) -> str | None:
        """Where the filter's rows are, if that is said."""
        if self.filter is not None and self.filter.input is not None:
            return self.filter.input
        return None if self.generate is None else self.generate.output


def load_recipe(path: str | Path, *needed: str) -> Recipe:
    """The recipe in a file; `needed` are the blocks that must be there.

    Raises ConfigError: no file, no YAML mapping, a block that is not there, or one line for every
    wrong key.
    """
    values = read_yaml(path)
    if ("distill" in values or "base_model" in values) and not values.keys() & {
        *Recipe.model_fields
    }:
        raise ConfigError(
            f"{path} is an Axolotl config and not a recipe, which has `teacher:`, `generate:` and "
            "`filter:`. Commands for a config are `capture` and `verify`."
        )
    try:
        recipe = parse_block(Recipe, values)
    except ConfigError as error:
        raise ConfigError(f"{path}:\n{error}") from None
    for name in needed or ("generate", "filter"):
        if getattr(recipe, name) is None and (needed or not (recipe.generate or recipe.filter)):
            raise ConfigError(f"{path} has no `{name}:` block, or an empty one. Add it.")
    if "filter" in needed and recipe.rows is None:
        raise ConfigError(
            f"{path}: nothing says which rows to filter. Set `filter.input` to a file or folder of "
            "rows."
        )
    return recipe
