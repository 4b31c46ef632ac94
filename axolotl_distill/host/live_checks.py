"""Whether a teacher can answer while the student trains, found before a weight is read."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from axolotl.loaders import load_tokenizer
from axolotl.utils.logging import get_logger
from datasets import Dataset

from axolotl_distill.config.distill import DistillArgs
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import ConfigError, TokenizerMismatchError
from axolotl_distill.host.compat import world_size
from axolotl_distill.host.findings import Finding
from axolotl_distill.teachers.tokenizer import READABLE, SharedVocabulary, local_vocabulary
from axolotl_distill.terms import check_terms

LOG = get_logger(__name__)
# Values of `peft_init_lora_weights`; pissa, olora, corda and others take from the weights what
# they give to the adapter.
LEAVE_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
SHARDED = (
    "The teacher runs in every process beside the student, and no run in which {how} shards the "
    "student was held to one process. Train with DDP, put the teacher behind a `server`, or "
    "capture it into a store first."
)


def live_teacher(args: DistillArgs) -> TeacherArgs | None:
    """The teacher that answers while the student trains, if there is one."""
    return args.teacher if isinstance(args.teacher, TeacherArgs) else None


def live_findings(cfg: Any, args: DistillArgs) -> Iterator[Finding]:
    """What the YAML combines with a live teacher and cannot go with it. Works before Axolotl has
    validated the config, and after."""
    teacher = live_teacher(args)
    if teacher is None:
        return
    if teacher.self and cfg.get("adapter") not in ("lora", "qlora"):
        yield Finding(
            "distill.teacher.self",
            "`distill.teacher.self: true` is the student with its adapter off,",
            "and this config trains no LoRA adapter.",
            "Set `adapter: lora` or qlora, or name a `model`: the base model itself will do.",
        )
    if teacher.self:
        yield from moved_base(
            cfg,
            "with its adapter off the student is not the model that it was "
            "(`distill.teacher.self`)",
        )
    if args.on_policy is not None:
        yield from _on_policy_findings(cfg)
    if teacher.server is not None:
        return
    for key in ("fsdp_config", "fsdp", "deepspeed"):
        if cfg.get(key):
            yield Finding(
                key,
                f"`{key}` cannot be combined with a live teacher that is no server.",
                SHARDED.format(how="it"),
                "",
            )
    if isinstance(teacher.device_map, str) and world_size() > 1:
        yield Finding(
            "distill.teacher.device_map",
            f"`distill.teacher.device_map: {teacher.device_map}` with {world_size()} processes:",
            "each of them would spread a teacher over all devices.",
            "Remove it, map the modules to devices, or put the teacher behind a `server`.",
        )


def moved_base(cfg: Any, why: str) -> Iterator[Finding]:
    """What makes the model below the adapter another than the one that is named, and `why` that
    cannot be."""
    quantised = ((cfg.get("peft") or {}).get("loftq_config") or {}).get("loftq_bits")
    moving = {
        "peft_init_lora_weights": cfg.get("peft_init_lora_weights"),
        "peft.loftq_config": quantised,
        "relora": cfg.get("relora"),
        "unfrozen_parameters": cfg.get("unfrozen_parameters"),
    }
    if moving["peft_init_lora_weights"] in LEAVE_THE_BASE:
        del moving["peft_init_lora_weights"]
    for key, value in moving.items():
        if value:
            yield Finding(
                key,
                f"`{key}` changes the weights below the adapter,",
                f"and {why}.",
                "Remove the key, or name a `model` as the teacher: the base model itself will do."
                if "self" in why
                else "Remove the key, or the block.",
            )


def _on_policy_findings(cfg: Any) -> Iterator[Finding]:
    for key in ("fsdp_config", "fsdp", "deepspeed", "torch_compile"):
        if cfg.get(key):
            yield Finding(
                key,
                f"`{key}` cannot be combined with `distill.on_policy`:",
                "the student's `generate` was not shown to work with it.",
                "Train with DDP or one process, without it.",
            )


def check_live_trainer(trainer: Any, args: DistillArgs, vocabulary: SharedVocabulary) -> None:
    """Raises ConfigError for a way of training that was shown for no live teacher, and
    TokenizerMismatchError for rows that the teacher cannot read."""
    teacher = live_teacher(args)
    assert teacher is not None
    kind = trainer.accelerator.distributed_type
    how = str(getattr(kind, "value", kind))
    if (teacher.server is None or args.on_policy is not None) and how in ("FSDP", "DEEPSPEED"):
        raise ConfigError(SHARDED.format(how=how))
    if vocabulary.foreign:
        _check_texts(trainer.named_datasets(), vocabulary, teacher.model)


def live_vocabulary(cfg: Any, teacher: TeacherArgs) -> SharedVocabulary:
    """What a live teacher's vocabulary shares with the student's; a server is asked for more, too.

    Raises TokenizerMismatchError where they do not read text alike, TermsError where the teacher's
    terms forbid it, CaptureError and ServerError where it cannot be read or reached.
    """
    tokenizer = load_tokenizer(cfg)
    if teacher.self:
        return SharedVocabulary(size=max(tokenizer.get_vocab().values()) + 1)
    LOG.info(f"axolotl-distill: {check_terms(teacher.model, teacher.terms).summary()}")
    try:
        if teacher.server is not None:
            from axolotl_distill.teachers.server import ServerTeacher

            with ServerTeacher(teacher, vocab_size=len(tokenizer)) as server:
                found = server.check(tokenizer, longest=cfg.sequence_len)
                LOG.info(f"axolotl-distill: {server.note}")
                return found
        shared, compared = local_vocabulary(teacher, tokenizer)
    except TokenizerMismatchError as error:
        raise TokenizerMismatchError(
            f"{error} That is for a teacher that is captured into a store (`axolotl distill "
            "capture`); one that answers beside the training reads text as its student does."
        ) from error
    if not compared:
        LOG.warning(
            f"axolotl-distill: {teacher.model} has no tokenizer: whether it reads text as the "
            "student is unknown."
        )
    return shared


def _check_texts(datasets: Mapping[str, Any], vocabulary: SharedVocabulary, teacher: str) -> None:
    """A stream, which is no Dataset, is read when it comes; so is its text."""
    for name, dataset in datasets.items():
        if not isinstance(dataset, Dataset) or "input_ids" not in dataset.column_names:
            continue
        for table in dataset.select_columns("input_ids").with_format("arrow").iter(1024):
            ids = np.unique(table["input_ids"].combine_chunks().flatten().to_numpy())
            if named := vocabulary.unread(ids):
                raise TokenizerMismatchError(
                    f"The {name} holds {named}, which only the student's tokenizer has: the "
                    f"teacher `{teacher}` cannot read it. {READABLE}"
                )
