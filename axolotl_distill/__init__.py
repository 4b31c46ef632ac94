"""Knowledge distillation for Axolotl. Importing it loads neither torch nor axolotl."""

from typing import Any

__all__ = ["DistillPlugin"]


def __getattr__(name: str) -> Any:
    if name == "DistillPlugin":
        from axolotl_distill.host.plugin import DistillPlugin

        return DistillPlugin
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
