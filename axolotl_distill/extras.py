"""What an optional part of this package needs, as a command that installs it."""

from importlib.metadata import requires

from packaging.requirements import Requirement


def pip_install(extra: str) -> str:
    """`pip install …` with the packages that the extra names, which works wherever this package
    itself was installed from."""
    needed = [Requirement(line) for line in requires("axolotl-distill") or []]
    wanted = [
        f"'{need.name}{'[' + ','.join(sorted(need.extras)) + ']' if need.extras else ''}"
        f"{need.specifier}'"
        for need in needed
        if need.marker and not need.marker.evaluate() and need.marker.evaluate({"extra": extra})
    ]
    return " ".join(["pip install", *wanted])
