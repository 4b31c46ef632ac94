"""RECIPE.yml: from prompts to a filtered dataset, as pydantic models. Imports nothing heavy."""

from axolotl_distill.recipe.load import Recipe, load_recipe
from axolotl_distill.recipe.server import ServerArgs
from axolotl_distill.recipe.teacher import RecipeTeacher

__all__ = ["Recipe", "RecipeTeacher", "ServerArgs", "load_recipe"]
