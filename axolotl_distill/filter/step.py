"""What a filter step is, what it says of a row, and which steps there are."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, ClassVar, Generic, NotRequired, TypeVar

from axolotl_distill.config.block import Block
from axolotl_distill.trajectories.row import Trajectory

A = TypeVar("A", bound=Block)
S = TypeVar("S", bound="type[Step[Any]]")


class Candidate(Trajectory):
    """A trajectory that is filtered.

    fault   (reason, detail) of a row that is put aside before any step
    given   what reading changed, as it stands in the file; all of a row that is none
    scores  what earlier steps gave it, by their names
    """

    fault: tuple[str, str] | None
    given: Any
    scores: NotRequired[dict[str, float]]


@dataclass(frozen=True)
class Verdict:
    """Keep a row or drop it, and why."""

    keep: bool
    reason: str = ""  # why dropped, short and countable: the same words for the same cause
    score: float | None = None  # in the step's own units; kept as the row's score under its name
    detail: str = ""  # for people, on the rejected row: what was seen


KEEP = Verdict(True)


class Where(Enum):
    """Where a step may run."""

    ANYWHERE = "each row is judged by itself, in any process"
    ON_GPU = "as anywhere, on a GPU where there is one"
    HERE = "in one process, which sees all rows: it compares them, or a server does the work"


@dataclass(frozen=True)
class Around:
    """What a step may need beside its own settings.

    name       the step's, in reports and scores
    tokenizer  `filter.tokenizer`
    answers    folder for what servers answered and was paid for
    """

    name: str = ""
    tokenizer: str | None = None
    answers: Path | None = None


ALONE = Around()


class Step(ABC, Generic[A]):
    """One named stage of a filter. Steps stream: bounded memory for any number of rows.

    A subclass that is `registered` can be named in a recipe. It says of itself:

    kind         its key in `filter.steps`
    Args         its settings
    remedy       what to do when it drops more than it should; "": it drops what it is asked to
    scores       whether later steps may choose by its scores
    column_keys  settings whose values are columns of the prompts' rows

    It is built before any row is judged, so that what is missing is said at once: `__init__` raises
    ConfigError for a package, tokenizer, model or language that is not there, and what is heavy is
    imported there or later. Models are loaded when the first row comes.
    """

    kind: ClassVar[str]
    Args: ClassVar[type[Block]]
    remedy: ClassVar[str] = ""
    scores: ClassVar[bool] = False
    column_keys: ClassVar[tuple[str, ...]] = ()

    def __init__(self, args: A, around: Around = ALONE):
        self.args, self.around = args, around

    @abstractmethod
    def judge(self, rows: Iterable[Candidate]) -> Iterator[Verdict]:
        """One verdict a row, in order."""

    def close(self) -> None:
        """Ends what the step holds open."""
        return

    @classmethod
    def where(cls, args: A) -> Where:
        return Where.ANYWHERE

    @classmethod
    def one_of_many(cls, args: A) -> A:
        """The settings for one worker of a cluster, which has one for every CPU."""
        return args

    @classmethod
    def chooses_by(cls, args: A) -> str | None:
        """The name of the earlier step whose scores it goes by."""
        return None

    @classmethod
    def counts_tokens(cls, args: A) -> bool:
        """Whether it needs `around.tokenizer`."""
        return False

    @classmethod
    def columns(cls, args: A) -> list[tuple[str, str]]:
        """(key, column) for every column of the prompts that the settings name themselves."""
        found = []
        for key in cls.column_keys:
            named = getattr(args, key) or []
            columns = [named] if isinstance(named, str) else named
            found += [(f"{cls.kind}.{key}", column) for column in columns]
        return found


STEPS: dict[str, type[Step[Any]]] = {}
"""Every step that a recipe may name, by its kind; full when `filter.steps` is imported."""


def registered(step: S) -> S:
    """Puts a step into STEPS."""
    assert step.kind not in STEPS, step.kind
    STEPS[step.kind] = step
    return step
