"""Looks a teacher up in the table and refuses what its terms forbid."""

from dataclasses import dataclass, field
from pathlib import Path

from axolotl_distill.errors import TermsError
from axolotl_distill.terms.names import base_names, card_licences, hub_page, own_name
from axolotl_distill.terms.table import STRICTEST_FIRST, Family, Ruling, rows_of

_SAYS: dict[Ruling, str] = {
    "permitted": "training on its output is permitted",
    "duties": "training on its output is permitted, with duties",
    "prohibited": "training on its output is prohibited, or for non-commercial use only",
    "unknown": "what its terms say about training on its output is not known here",
}
_NO_ADVICE = "Facts with their source, not legal advice; see `axolotl-distill docs teacher-terms`."


@dataclass(frozen=True)
class Terms:
    """What a teacher's licence or terms say about training on its output.

    A model made from another's weights carries both families' rows: names, licences, sources and
    dates are then joined with ` + `, and the strictest verdict holds.
    """

    family: str
    verdict: Ruling
    licence: str
    duties: list[str] = field(default_factory=list)
    source: str = ""
    checked: str = "not read"
    agreement: str | None = None

    def summary(self) -> str:
        """Lines for the terminal and the card: verdict, duties, source and the user's statement."""
        return "\n".join([*self._facts(), *self._agreed(), f"  {_NO_ADVICE}"])

    def _facts(self) -> list[str]:
        licence = f" ({self.licence})" if self.licence else ""
        source = [f"  Source: {self.source} (checked: {self.checked})."] if self.source else []
        return [
            f"Teacher terms of {self.family}{licence}: {_SAYS[self.verdict]}.",
            *(f"  - {duty}" for duty in self.duties),
            *source,
        ]

    def _agreed(self) -> list[str]:
        return [f"  Your own statement: {self.agreement}"] if self.agreement else []


def check_terms(model_name: str, agreement: str | None) -> Terms:
    """The terms for a hub name, a served name or a local folder.

    `agreement` is the user's own statement of why they may train on the output; blank is none.
    Raises TermsError when the terms forbid it and there is no agreement.
    """
    agreement = (agreement or "").strip() or None
    found = _find(model_name)
    terms = _joined(found, agreement) if found else _unknown(model_name, agreement)
    if terms.verdict == "prohibited" and agreement is None:
        facts = "\n".join(terms._facts())
        raise TermsError(
            f"{model_name!r} cannot be the teacher as it is.\n{facts}\n"
            "Take another teacher. If you may do it all the same (a contract, research, a model "
            "that does not compete), say why in your own words under `teacher.terms` of the recipe "
            f"or `distill.capture.teacher.terms`; the words go into the card. {_NO_ADVICE}"
        )
    return terms


def _find(model_name: str) -> list[Family]:
    found = rows_of(own_name(model_name))
    folder = Path(model_name)
    if folder.is_dir():
        for base in base_names(folder):
            found = {**rows_of(base), **found}
        if not found:
            for licence in card_licences(folder):
                found = {**rows_of(f"licence/{licence}"), **found}
    return sorted(found.values(), key=lambda row: STRICTEST_FIRST.index(row.verdict))


def _joined(found: list[Family], agreement: str | None) -> Terms:
    def all_of(key: str) -> str:
        return " + ".join(dict.fromkeys(getattr(row, key) for row in found))

    return Terms(
        family=all_of("family"),
        verdict=found[0].verdict,
        licence=all_of("licence"),
        duties=list(dict.fromkeys(duty for row in found for duty in row.duties)),
        source=all_of("source"),
        checked=all_of("checked"),
        agreement=agreement,
    )


def _unknown(model_name: str, agreement: str | None) -> Terms:
    return Terms(
        family=repr(model_name),
        verdict="unknown",
        licence="",
        duties=["Read the licence in the model's card, or the terms of the service that runs it."],
        source=hub_page(model_name),
        agreement=agreement,
    )
