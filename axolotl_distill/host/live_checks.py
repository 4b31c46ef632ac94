"""Whether a teacher can answer while the student trains, found before a weight is read."""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
from axolotl.loaders import load_tokenizer
from axolotl.utils.logging import get_logger
from datasets import Dataset
from transformers import AutoConfig

from axolotl_distill.config.choice import ChoiceArgs
from axolotl_distill.config.distill import DistillArgs
from axolotl_distill.config.on_policy import OnPolicyArgs
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import ConfigError, DistillError, TokenizerMismatchError
from axolotl_distill.host.compat import join_processes, shards_the_student, world_size
from axolotl_distill.host.datasets.told import chosen_of
from axolotl_distill.host.findings import Finding
from axolotl_distill.host.parallelism import sharding
from axolotl_distill.signal.batch import CHOICES
from axolotl_distill.signal.live import Reading
from axolotl_distill.teachers.context import Context
from axolotl_distill.teachers.tokenizer import READABLE, SharedVocabulary, local_vocabulary
from axolotl_distill.terms import check_terms

LOG = get_logger(__name__)
# Values of `peft_init_lora_weights`; pissa, olora, corda and others take from the weights what
# they give to the adapter.
LEAVE_THE_BASE = (None, True, False, "gaussian", "eva", "orthogonal")
SHARDED = (
    "{what} runs the student outside its training step, and no run in which {how} shards the "
    "student was held to one process. Train with DDP, ZeRO-1 or ZeRO-2."
)


def live_findings(cfg: Any, args: DistillArgs) -> Iterator[Finding]:
    """What the YAML combines with live teachers and cannot go with them. Works before Axolotl has
    validated the config, and after."""
    for key, teacher in args.teachers.items():
        yield from _findings_of(f"distill.{key}", teacher, cfg)
    if args.teachers and args.on_policy is not None:
        yield from _on_policy_findings(cfg)
        if args.on_policy.evaluate:
            yield from _evaluation_findings(cfg)
        if args.on_policy.seq_kd and any(t.context_column for t in args.teachers.values()):
            yield Finding(
                "distill.on_policy.seq_kd",
                "`distill.on_policy.seq_kd` cannot be combined with `teacher.context_column` yet:",
                "the teacher writes after one context for all prompts.",
                "Remove one of the two.",
            )
        for key, teacher in args.teachers.items():
            if teacher.sharded:
                yield from _unequal_calls(f"distill.{key}", args.on_policy)


def _findings_of(key: str, teacher: TeacherArgs, cfg: Any) -> Iterator[Finding]:
    """Of the one at `key`."""
    if teacher.self and teacher.own_weights == "base":
        if cfg.get("adapter") not in ("lora", "qlora"):
            yield Finding(
                f"{key}.self",
                f"`{key}.self: true` is the student with its adapter off,",
                "and this config trains no LoRA adapter.",
                "Set `adapter: lora` or qlora; or name a `model`: the base model itself will do; "
                "or let it see more than the student does: `context`, `context_column`; or "
                "average its steps: `ema`.",
            )
        yield from moved_base(
            cfg,
            f"with its adapter off the student is not the model that it was (`{key}.self`)",
        )
    if teacher.self:
        yield from _sharded_self(cfg)
    if teacher.ema is not None:
        yield from _average_findings(cfg)
    if isinstance(teacher.device_map, str) and world_size() > 1:
        yield Finding(
            f"{key}.device_map",
            f"`{key}.device_map: {teacher.device_map}` with {world_size()} processes:",
            "each of them would spread a teacher over all devices.",
            "Remove it, map the modules to devices, or put the teacher behind a `server`.",
        )


def with_the_student(args: DistillArgs) -> DistillArgs:
    """`args` with `teacher.sharded` settled: as its block says, else as the student is. One process
    has nothing to share; a teacher that is quantised or mapped to devices stays whole."""
    settled = {key: _settled(teacher, args) for key, teacher in args.teachers.items()}
    if isinstance(args.teacher, ChoiceArgs):
        choices = dict(zip(args.teacher.names, settled.values(), strict=True))
        return args.model_copy(
            update={"teacher": args.teacher.model_copy(update={"choices": choices})}
        )
    return args.model_copy(update=settled)


def _settled(teacher: TeacherArgs, args: DistillArgs) -> TeacherArgs:
    if teacher.self or teacher.server is not None:
        return teacher
    sharded = teacher.sharded
    if sharded is None:
        alone = (teacher.quantization, teacher.device_map, args.cross_tokenizer)
        sharded = shards_the_student() and all(key is None for key in alone)
    sharded = sharded and world_size() > 1
    if sharded:
        join_processes()
        LOG.info(
            f"axolotl-distill: the teacher's layers are shared by {world_size()} processes "
            f"({teacher.model})"
        )
    elif shards_the_student():
        LOG.warning(
            f"axolotl-distill: every process holds the whole teacher `{teacher.model}` beside its "
            "part of the student."
        )
    return teacher.model_copy(update={"sharded": sharded})


def _unequal_calls(at: str, given: OnPolicyArgs) -> Iterator[Finding]:
    """What has processes run a teacher that they share a different number of times."""
    for key, alike in (("seq_kd", "tokens"), ("evaluate", "batches")):
        if getattr(given, key):
            yield Finding(
                f"{at}.sharded",
                f"`{at}.sharded: true` cannot be combined with `on_policy.{key}`:",
                f"the processes would have to write equally many {alike}.",
                "Remove one of them.",
            )


def _sharded_self(cfg: Any) -> Iterator[Finding]:
    for key in sharding(cfg):
        yield Finding(
            key,
            f"`{key}` cannot be combined with `distill.teacher: self`.",
            SHARDED.format(what="It", how="it"),
            "",
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


def _average_findings(cfg: Any) -> Iterator[Finding]:
    """What an average of the student's weights was not shown to go with."""
    quantised = [key for key in ("load_in_4bit", "load_in_8bit") if cfg.get(key)]
    others = ("torch_compile", "relora", "lisa_n_layers", "qat", "fp8")
    for key in [*others, *(quantised if not cfg.get("adapter") else ())]:
        if cfg.get(key):
            yield Finding(
                key,
                f"`{key}` cannot be combined with `distill.teacher.ema`:",
                "the average is of weights that are there as floats, the same in every step, and "
                "takes their place while the teacher answers.",
                "Remove one of the two, or train a LoRA adapter.",
            )
    if cfg.get("deepspeed"):
        yield Finding(
            "deepspeed",
            "`deepspeed` cannot be combined with `distill.teacher.ema`:",
            "it goes on from a checkpoint by itself, without the average.",
            "Train with DDP.",
        )


def _evaluation_findings(cfg: Any) -> Iterator[Finding]:
    if not (cfg.get("val_set_size") or cfg.get("test_datasets")):
        yield Finding(
            "distill.on_policy.evaluate",
            "`distill.on_policy.evaluate` takes its prompts from the evaluation set,",
            "and this config has none.",
            "Set `val_set_size` or `test_datasets`, or remove it.",
        )
    for key in sharding(cfg):
        yield Finding(
            key,
            f"`{key}` cannot be combined with `distill.on_policy.evaluate`:",
            "processes with unlike numbers of batches would wait for each other.",
            "Remove `evaluate`, or train with DDP or ZeRO-2.",
        )


def _on_policy_findings(cfg: Any) -> Iterator[Finding]:
    if cfg.get("torch_compile"):
        yield Finding(
            "torch_compile",
            "`torch_compile` cannot be combined with `distill.on_policy`:",
            "the student's `generate` was not shown to work with it.",
            "Remove it.",
        )


def check_live_trainer(trainer: Any, args: DistillArgs, readings: Mapping[str, Reading]) -> None:
    """Raises ConfigError for a way of training that was shown for no live teacher, and
    TokenizerMismatchError for rows that their teacher cannot read."""
    kind = trainer.accelerator.distributed_type
    how = str(getattr(kind, "value", kind))
    for number, (key, teacher) in enumerate(args.teachers.items()):
        if teacher.self and (shards_the_student() or (teacher.ema and how == "DEEPSPEED")):
            raise ConfigError(SHARDED.format(what="`self`", how=how))
        vocabulary = readings[key].vocabulary
        if vocabulary.foreign:
            chosen = number if len(args.teachers) > 1 else None
            _check_texts(trainer.named_datasets(), vocabulary, teacher.model, chosen)


def live_readings(cfg: Any, args: DistillArgs) -> dict[str, Reading]:
    """How each live teacher reads text, by its key. Raises what `live_vocabulary` and
    `live_context` do, and of several teachers says whose it is."""
    found = {}
    for key, teacher in args.teachers.items():
        try:
            found[key] = Reading(
                live_vocabulary(cfg, teacher),
                live_context(cfg, f"distill.{key}", teacher),
                by_row=teacher.context_column is not None,
            )
        except DistillError as error:
            if len(args.teachers) == 1:
                raise
            raise type(error)(f"`distill.{key}`: {error}") from error
    return found


def live_vocabulary(cfg: Any, teacher: TeacherArgs) -> SharedVocabulary:
    """What a live teacher's vocabulary shares with the student's; a server is asked for more, too.

    Raises TokenizerMismatchError where they do not read text alike, TermsError where the teacher's
    terms forbid it, CaptureError and ServerError where it cannot be read or reached.
    """
    tokenizer = load_tokenizer(cfg)
    if teacher.self:
        return SharedVocabulary(size=max(tokenizer.get_vocab().values()) + 1)
    LOG.info(f"axolotl-distill: {check_terms(teacher.model, teacher.terms).summary()}")
    if teacher.server is not None:
        from axolotl_distill.teachers.server import ServerTeacher

        try:
            with ServerTeacher(teacher, vocab_size=len(tokenizer)) as server:
                found = server.check(tokenizer, longest=cfg.sequence_len)
                LOG.info(f"axolotl-distill: {server.note}")
                return found
        except TokenizerMismatchError as error:
            raise TokenizerMismatchError(
                f"{error} That is for a teacher that is loaded here, without `server`."
            ) from error
    shared, compared = local_vocabulary(teacher, tokenizer)
    if not compared:
        LOG.warning(
            f"axolotl-distill: {teacher.model} has no tokenizer: whether it reads text as the "
            "student is unknown."
        )
    return shared


def live_context(cfg: Any, key: str, teacher: TeacherArgs) -> Context:
    """`context` of the teacher at `key` as the student's tokenizer reads it.

    Raises ConfigError where it is no token, or where the student's positions are not enough for it
    and a row. Of a context that each row brings, no more than where it stands.
    """
    if not teacher.sees_more:
        return Context()
    tokenizer = load_tokenizer(cfg)
    if teacher.context_column is not None:
        plain, begun = (tokenizer("a", add_special_tokens=s)["input_ids"] for s in (False, True))
        return Context((), begun[0] if begun[0] != plain[0] else None)
    ids = tuple(tokenizer(teacher.context, add_special_tokens=False)["input_ids"])
    if not ids:
        raise ConfigError(
            f"`{key}.context: {teacher.context!r}` is no token to the student's "
            "tokenizer. Write down what only the teacher sees, or remove it."
        )
    most = positions_of(cfg)
    if most is not None and len(ids) + cfg.sequence_len > most:
        raise ConfigError(
            f"`{key}.context` has {len(ids)} tokens, which with `sequence_len: "
            f"{cfg.sequence_len}` are more than the {most} positions of {cfg.base_model}. Shorten "
            f"one of the two: a row may have {max(most - len(ids), 0)} tokens."
        )
    LOG.info(f"axolotl-distill: the teacher reads {len(ids)} tokens before every text")
    # Not the tokenizer's bos_token, which may be one that begins every turn of a chat.
    begun = tokenizer(teacher.context)["input_ids"]
    return Context(ids, begun[0] if begun[0] != ids[0] else None)


def positions_of(cfg: Any) -> int | None:
    """How many tokens the student can read at once, where its config says so."""
    config = AutoConfig.from_pretrained(
        cfg.base_model_config or cfg.base_model, trust_remote_code=bool(cfg.trust_remote_code)
    ).get_text_config()
    changed = (cfg.overrides_of_model_config or {}).get("max_position_embeddings")
    return changed or getattr(config, "max_position_embeddings", None)


def _check_texts(
    datasets: Mapping[str, Any], vocabulary: SharedVocabulary, teacher: str, chosen: int | None
) -> None:
    """chosen: the number of the teacher, who reads the rows that name it alone. A stream, which is
    no Dataset, is read when it comes; so is its text."""
    for name, dataset in datasets.items():
        if not isinstance(dataset, Dataset) or "input_ids" not in dataset.column_names:
            continue
        columns = ["input_ids", *([] if chosen is None else [CHOICES.name])]
        for table in dataset.select_columns(columns).with_format("arrow").iter(1024):
            texts = table["input_ids"].combine_chunks()
            if chosen is not None:
                texts = texts.filter(pa.array(chosen_of(table) == chosen))
            if named := vocabulary.unread(np.unique(texts.flatten().to_numpy())):
                raise TokenizerMismatchError(
                    f"The {name} holds {named}, which only the student's tokenizer has: the "
                    f"teacher `{teacher}` cannot read it. {READABLE}"
                )
