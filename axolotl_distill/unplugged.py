"""What Axolotl finds under the public dataset types when the plugin has not taken them over.

Axolotl reads a dotted type as a module with a `load` function. The plugin replaces the public
names before that; where it is missing, the `load` that is found here says so.
"""

from collections.abc import Callable
from typing import Any, NoReturn

from axolotl_distill.errors import ConfigError


def needs_plugin(type_name: str) -> Callable[..., NoReturn]:
    """A `load` that raises ConfigError with what to add to the YAML."""

    def load(tokenizer: Any, cfg: Any, ds_cfg: Any = None) -> NoReturn:
        raise ConfigError(
            f"`datasets[].type: {type_name}` is served by the plugin axolotl_distill, which this "
            "config does not turn on. Add `plugins: [axolotl_distill]` and a `distill:` block "
            "(`distill: {}` takes the defaults)."
        )

    return load
