"""`axolotl distill docs`: the documents, where there is no repository to look into."""

from pathlib import Path

import click

from axolotl_distill.errors import ConfigError

PACKAGE = Path(__file__).resolve().parents[1]


def run(name: str | None) -> None:
    """Print one document, or the names of all of them and where they lie."""
    found = documents()
    if name is None:
        for known, path in found.items():
            click.echo(f"{known:<44}{path}")
        return
    known = name.removeprefix("docs/").removesuffix(".md")
    if known not in found:
        raise ConfigError(f"There is no document {name!r}. Known: {', '.join(found)}.")
    click.echo(found[known].read_text())


def documents() -> dict[str, Path]:
    """Every document by name: those of a wheel lie in the package, a clone's beside it."""
    folder = next(root / "docs" for root in (PACKAGE, PACKAGE.parent) if (root / "docs").is_dir())
    return {
        str(path.relative_to(folder).with_suffix("")): path for path in sorted(folder.rglob("*.md"))
    }
