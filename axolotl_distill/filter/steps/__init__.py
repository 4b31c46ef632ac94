"""The steps of a filter. A module of this folder is found by being here, and registers its steps
(`filter/step.py`); nothing else has a list of them.

Recipes are checked against the steps' settings before anything heavy is imported, so these modules
import torch, transformers, numpy and the like where they use them.
"""

from importlib import import_module
from pkgutil import iter_modules

for module in iter_modules(__path__):
    import_module(f"{__name__}.{module.name}")
