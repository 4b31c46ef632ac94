"""`axolotl distill docs`: the documents, where there is no repository to look into."""

from importlib.metadata import files
from pathlib import Path

from axolotl_distill.commands.say import say
from axolotl_distill.errors import ConfigError

BESIDE = Path(__file__).resolve().parents[2] / "docs"
INSTALLED = "share/axolotl-distill/docs/"


def run(name: str | None) -> None:
    """Print one document, or the names of all of them and where they lie."""
    found = documents()
    if name is None:
        width = max(map(len, found), default=0) + 2
        for known, path in found.items():
            say(f"{known:<{width}}{path}")
        return
    known = name.removeprefix("docs/").removesuffix(".md")
    if known not in found:
        raise ConfigError(f"There is no document {name!r}. Known: {', '.join(found)}.")
    say(found[known].read_text())


def documents() -> dict[str, Path]:
    """Every document by name: a clone has them beside the package, and pip knows where it put
    those of a wheel."""
    if BESIDE.is_dir():
        found = {str(path.relative_to(BESIDE)): path for path in BESIDE.rglob("*.md")}
    else:
        installed = files("axolotl-distill") or []
        found = {
            str(path).partition(INSTALLED)[2]: Path(str(path.locate()))
            for path in installed
            if INSTALLED in str(path)
        }
    return {name.removesuffix(".md"): found[name].resolve() for name in sorted(found)}
