"""A teacher with another tokenizer that answers while the student trains: the two tokenizers, found
before a weight is read; the rows as both read them; and what these show before training begins."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from axolotl.loaders import load_tokenizer
from axolotl.utils.logging import get_logger
from datasets import Dataset
from tqdm import tqdm
from transformers import PreTrainedModel

from axolotl_distill.align import Pieces, pair_rows
from axolotl_distill.align.survey import Survey
from axolotl_distill.capture.beside import SpanSignal
from axolotl_distill.capture.crossing import REMEDY
from axolotl_distill.capture.named import served_note
from axolotl_distill.config.cross_tokenizer import BESIDE, CrossTokenizerArgs
from axolotl_distill.config.distill import DistillArgs, is_store
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.compat import shards_the_student
from axolotl_distill.host.datasets.paired import COLUMNS, Reader, read_too
from axolotl_distill.host.datasets.types import CARRIER, READ_AS, READ_BY
from axolotl_distill.host.findings import Finding
from axolotl_distill.objectives.base import Objective
from axolotl_distill.objectives.crossed import CrossObjective
from axolotl_distill.objectives.logits import logits_objective
from axolotl_distill.objectives.methods import cross_objective
from axolotl_distill.signal.batch import OTHER_IDS, OTHER_LABELS
from axolotl_distill.signal.signal import Want
from axolotl_distill.signal.spans import PairedSignal
from axolotl_distill.teachers.hf import HFTeacher
from axolotl_distill.teachers.load import beside
from axolotl_distill.teachers.server import ServerTeacher
from axolotl_distill.teachers.tokenizer import (
    SharedVocabulary,
    other_tokenizer,
    served_otherwise,
)
from axolotl_distill.terms import check_terms

LOG = get_logger(__name__)
SHARDED = (
    "no run in which it shards the student was held to one process. Train with DDP, or capture the "
    "teacher into a store first (`method: span`)."
)
BEGIN = 16
"""Tokens that a row is named by."""


def crosses(args: DistillArgs) -> bool:
    """Whether a teacher with another tokenizer answers while the student trains."""
    return args.cross_tokenizer is not None and isinstance(args.teacher, TeacherArgs)


def cross_findings(cfg: Any, args: DistillArgs) -> Iterator[Finding]:
    """What the YAML combines with such a teacher and cannot go with it. Works before Axolotl has
    validated the config, and after."""
    if not crosses(args):
        return
    if cfg.get("streaming"):
        yield Finding(
            "streaming",
            "`streaming: true` cannot be combined with a live teacher that has another tokenizer:",
            "whether both read its rows alike is found out before training, from all of them.",
            "Remove it.",
        )
    for key in ("fsdp_config", "fsdp", "deepspeed"):
        if cfg.get(key):
            yield Finding(
                key,
                f"`{key}` cannot be combined with a live teacher that has another tokenizer:",
                SHARDED,
                "",
            )
    assert args.cross_tokenizer is not None
    if cfg.get("torch_compile") and args.cross_tokenizer.method in BESIDE:
        yield Finding(
            "torch_compile",
            f"`torch_compile` with `distill.cross_tokenizer.method: {args.cross_tokenizer.method}`",
            "was not tried.",
            "Remove one of the two.",
        )
    for entry in [*(cfg.get("datasets") or []), *(cfg.get("test_datasets") or [])]:
        if is_store(entry):
            yield Finding(
                "datasets",
                f"{entry.get('path')} is a store,",
                "whose rows are tokens, and a live teacher with another tokenizer reads text.",
                "Name the text that it was captured from, or set `distill.teacher: store`.",
            )


@dataclass(frozen=True)
class Crossing:
    """A teacher, and the tokens of both sides as bytes.

    served  of a teacher behind a server: how many of its likeliest tokens it is asked for, and
            which ids it reads as `theirs`
    """

    teacher: TeacherArgs
    cross: CrossTokenizerArgs
    theirs: Pieces
    own: Pieces
    served: tuple[int, SharedVocabulary] | None = None

    def read_too(self, datasets: list[Any] | None) -> None:
        """Has Axolotl write every row for the teacher as well, in place; what was prepared for
        another teacher or template, or by another type, is not taken for it. Raises what
        paired.read_too does."""
        entries = datasets or []
        read_too(entries, Reader(self.teacher, self.cross))
        template = getattr(self.theirs.tokenizer, "chat_template", None)
        key = f"{self.theirs.fingerprint}/{self.cross.chat_template}/{template}"
        for entry in entries:
            entry[CARRIER] = f"{entry.get(CARRIER) or ''}{READ_BY}{key}/{entry[READ_AS]}"

    def source(self, student: PreTrainedModel) -> SpanSignal | PairedSignal:
        """The source of the signal; to be settled with a survey. Raises CaptureError where the
        teacher cannot be loaded, and ConfigError where the student is sharded."""
        if shards_the_student():
            raise ConfigError(
                "FSDP or ZeRO-3 is in force, which cannot be combined with a live teacher that has "
                f"another tokenizer: {SHARDED}"
            )
        size = len(self.theirs)
        if self.served is not None:
            server = ServerTeacher(self.teacher, vocab_size=size)
            want = Want(min(self.served[0], size), realised=True)
            return SpanSignal(server, self.cross.k, self.cross.method, want)
        teacher = HFTeacher(beside(self.teacher, student), vocab_size=size)
        if self.cross.method not in BESIDE:
            return SpanSignal(teacher, self.cross.k, self.cross.method)
        vocabulary = SharedVocabulary(size)
        return PairedSignal(
            teacher, self.teacher.model, vocabulary, Want(unprojected=True), "tail_bucket", 1.0,
            batched=True, theirs=self.theirs, own=self.own, in_order=self.cross.method == "uld",
        )  # fmt: skip

    def objective(self, args: DistillArgs, source: SpanSignal | PairedSignal) -> Objective:
        """What is learnt of that signal; to be settled too where it can be."""
        if isinstance(source, SpanSignal):
            return logits_objective(args, source)
        return cross_objective(self.cross, args.alpha, self.theirs, self.own)

    def settle(self, source: Any, objectives: Iterable[Any], datasets: Mapping[str, Any]) -> None:
        """Tells them what all rows show. Raises what `survey` does."""
        found = self.survey(datasets)
        source.settle(found)
        for objective in objectives:
            if isinstance(objective, CrossObjective):
                objective.settle(found)

    def survey(self, datasets: Mapping[str, Any]) -> Survey:
        """What all rows show of the two tokenizers.

        datasets  by what a user calls them

        Raises ConfigError for a row whose answers are not the same text to both, and names it.
        """
        found = Survey(self.theirs, self.own)
        for name, dataset in datasets.items():
            if dataset is None:
                continue
            if not isinstance(dataset, Dataset) or not {*COLUMNS} <= {*dataset.column_names}:
                raise ConfigError(
                    f"The {name} was not read for the teacher `{self.teacher.model}`, which has "
                    "another tokenizer (`distill.cross_tokenizer`). Use `datasets` with a `type`, "
                    "and remove `dataset_prepared_path`'s folder if it was made without it."
                )
            self._add(found, name, dataset)
        spans = found.spans
        share = spans[1, 1] / max(1, sum(spans.values()))
        LOG.info(
            f"axolotl-distill: the teacher reads with its own tokenizer: of "
            f"{sum(spans.values()):,} spans that both bound, {share:.1%} are one token of each"
        )
        return found

    def _add(self, found: Survey, name: str, dataset: Dataset) -> None:
        rows = dataset.select_columns(["input_ids", "labels", *COLUMNS])
        shown = tqdm(rows, total=len(rows), unit=" rows", desc=f"aligning the {name}", delay=3.0)
        for row in shown:
            own, theirs = row["input_ids"], row[OTHER_IDS.name]
            try:
                answers = pair_rows(
                    theirs, row[OTHER_LABELS.name], own, row["labels"], self.theirs, self.own
                )
                found.add(answers, theirs, own)
            except ValueError as error:
                begin = self.own.tokenizer.decode(own[:BEGIN])
                raise ConfigError(
                    f"The row of the {name} that begins {begin!r} cannot be given to a teacher "
                    f"with another tokenizer: {error}. {REMEDY}."
                ) from error
            if self.served is not None:
                self.served[1].check_ids(np.asarray(theirs), self.teacher.model)


def crossing(cfg: Any, args: DistillArgs) -> Crossing | None:
    """None where no such teacher is. Reads no weights; a server is asked how it reads.

    Raises TermsError where the teacher's terms forbid it, CaptureError for a tokenizer that cannot
    be read, TokenizerMismatchError for one whose tokens have no bytes or that is not what is
    served, and what ServerTeacher.check does.
    """
    if not crosses(args):
        return None
    teacher = args.teacher
    assert isinstance(teacher, TeacherArgs) and args.cross_tokenizer is not None
    LOG.info(f"axolotl-distill: {check_terms(teacher.model, teacher.terms).summary()}")
    theirs, own = Pieces(other_tokenizer(teacher)), Pieces(load_tokenizer(cfg))
    if teacher.server is None:
        return Crossing(teacher, args.cross_tokenizer, theirs, own)
    with ServerTeacher(teacher, vocab_size=len(theirs)) as server, served_otherwise(teacher):
        shared = server.check(theirs.tokenizer, longest=int(cfg.sequence_len))
    LOG.info(f"axolotl-distill: {server.note}")
    LOG.warning(f"axolotl-distill: {served_note(teacher, args.k, 'distill.k')}")
    return Crossing(teacher, args.cross_tokenizer, theirs, own, (args.k, shared))
