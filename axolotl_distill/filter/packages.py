"""Packages that only some recipes need."""

from importlib.util import find_spec

from axolotl_distill.errors import ConfigError
from axolotl_distill.extras import pip_install


def require(package: str, key: str, extra: str = "filter") -> None:
    """Raises ConfigError where the package that the recipe's `key` needs is not installed.

    Called when steps are built, which is before any row is judged: a package that is first missed
    when its turn comes costs all the work before it.
    """
    if find_spec(package) is None:
        raise ConfigError(
            f"`{key}` needs the package {package}, which is not installed here: "
            f"{pip_install(extra)}"
        )
