"""The table of model families: its rows, how a name finds them, and how the document shows them."""

import re
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Literal

import yaml

Ruling = Literal["permitted", "duties", "prohibited", "unknown"]
STRICTEST_FIRST: tuple[Ruling, ...] = ("prohibited", "unknown", "duties", "permitted")


@dataclass(frozen=True)
class Family:
    """One family of models under one licence, from a file in `rows/`.

    A version whose licence nobody looked at belongs to no row: "not known" is better than a guess.
    """

    line: str
    """Rows of one line exclude each other: the first that matches wins, so the specific come first.
    Rows of different lines add up, as DeepSeek-R1-Distill-Llama-70B is DeepSeek's and Meta's."""
    family: str
    match: re.Pattern[str]
    """Searched in a model's name in lower case, with `-` for `_`, `:` and blanks, and in
    `licence/<identifier>` for the licence in a local model's card."""
    examples: tuple[str, ...]
    """Names that fall to this row and no other of its line; the first two are shown."""
    verdict: Ruling
    """`prohibited` also where the model or its output is for non-commercial use only."""
    licence: str
    duties: tuple[str, ...]
    source: str
    checked: str
    """The ISO date on which the text, or a stored copy of it, was read; `<date>, as quoted by
    others` where only the clause was seen, quoted elsewhere; `not read; …` for everything else."""


@cache
def rows() -> tuple[Family, ...]:
    """Every row: the files by name, and within a file from top to bottom."""
    folder = files(__package__) / "rows"
    paths = sorted((p for p in folder.iterdir() if p.name.endswith(".yml")), key=lambda p: p.name)
    return tuple(_row(values) for p in paths for values in yaml.safe_load(p.read_text("utf-8")))


def _row(values: dict) -> Family:
    return Family(
        **{
            **values,
            "match": re.compile(values["match"]),
            "examples": tuple(values["examples"]),
            "duties": tuple(values.get("duties", ())),
            "checked": str(values["checked"]),
        }
    )


def rows_of(name: str) -> dict[str, Family]:
    """The rows that a name falls under, by line; empty for a name the table does not know."""
    plain = re.sub(r"[\s_:]+", "-", name.lower())
    found: dict[str, Family] = {}
    for row in rows():
        if row.line not in found and row.match.search(plain):
            found[row.line] = row
    return found


_HEAD = """\
# What teachers' terms say about training on their output

These are facts with their sources, **not legal advice**. Licences and terms change, and what they
mean depends on who you are and what you build: read the source yourself before you rely on a row.

`axolotl distill generate` and `axolotl distill capture` look the teacher up here by its name:

* **permitted**: nothing to do.
* **duties**: permitted with duties, which are printed and written into the dataset's card.
* **prohibited**: forbidden, or for research or non-commercial use only. Refused, unless you state
  in your own words why you may (a contract, research, a model that does not compete, …), under
  `teacher.terms` of the recipe or `distill.capture.teacher.terms`. Your words go into the card.
* **unknown**, and every name that no row knows: goes on, with a note to look at the terms yourself.

A model made from another model's weights falls under both rows: DeepSeek-R1-Distill-Llama-70B
under DeepSeek's and Llama's. A local folder is known by its name, by `base_model` in its
`README.md` and `_name_or_path` in its `config.json`, or else by `license` in its `README.md`.
Nothing is looked up on the hub. A name says nothing about where the model runs: the terms of the
service that runs it may apply on top.

*Checked* is the day on which the text at the source, or a stored copy of it, was read for this
table. "As quoted by others" means that the clause was seen only as a quotation. "Not read" rows are
what is generally known or reported, and may be wrong.

This page is printed from `axolotl_distill/terms/rows/`:
`python -m axolotl_distill.terms > docs/teacher-terms.md`.

| Teacher | Training on its output | Licence or terms | What you must do | Source, checked |
|---|---|---|---|---|
"""


def as_markdown() -> str:
    """`docs/teacher-terms.md`, whole."""
    lines = []
    for row in rows():
        names = ", ".join(f"`{name}`" for name in row.examples[:2])
        cells = (
            f"**{row.family}**<br>{names}",
            row.verdict,
            row.licence,
            "<br>".join(row.duties) or "–",
            f"<{row.source}><br>{row.checked}",
        )
        lines.append("| " + " | ".join(cells) + " |\n")
    return _HEAD + "".join(lines)
