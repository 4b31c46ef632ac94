"""What a check finds: which key, what was seen, what was expected, and what to do."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Self

from axolotl.utils.logging import get_logger

from axolotl_distill.errors import ConfigError, DistillError

LOG = get_logger(__name__)


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong. Each of the three texts is a sentence.

    key     in the YAML, or the file
    error   what training raises; None for what is only said
    """

    key: str
    seen: str
    expected: str
    remedy: str
    error: type[DistillError] | None = ConfigError

    @classmethod
    def of(cls, key: str, error: DistillError) -> Self:
        """What a lower layer found, in its own words."""
        return cls(key, str(error), "", "", type(error))

    def __str__(self) -> str:
        return " ".join(part for part in (self.seen, self.expected, self.remedy) if part)

    def as_json(self) -> dict[str, Any]:
        level = "warning" if self.error is None else "error"
        about = {"key": self.key, "seen": self.seen}
        return {**about, "expected": self.expected, "remedy": self.remedy, "level": level}


def enforce(findings: Iterable[Finding]) -> None:
    """Says what is only said, and raises the first of the others."""
    for finding in findings:
        if finding.error is not None:
            raise finding.error(str(finding))
        LOG.warning(f"axolotl-distill: {finding}")
