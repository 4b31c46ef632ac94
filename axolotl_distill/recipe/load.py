"""Reads a recipe's file."""

from pathlib import Path

import yaml

from axolotl_distill.block import Block, parse_block
from axolotl_distill.errors import ConfigError
from axolotl_distill.recipe.filter import FilterArgs
from axolotl_distill.recipe.generate import GenerateArgs
from axolotl_distill.recipe.teacher import RecipeTeacher


class Recipe(Block):
    """Who writes, what is generated, what is kept. One file for both commands."""

    teacher: RecipeTeacher
    generate: GenerateArgs
    filter: FilterArgs | None = None


def load_recipe(path: str | Path) -> Recipe:
    """Raises ConfigError: a missing file, no YAML mapping, or one line for every wrong key."""
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path}: no such recipe.")
    try:
        values = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} is not a recipe: it needs `teacher:` and `generate:` keys.")
    return parse_block(Recipe, values)
