"""What `distill.on_policy` needs of a trainer that stands."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from axolotl.utils.logging import get_logger
from transformers import TrainerCallback

from axolotl_distill.capture.teacher import estimated_at
from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.config.distill import DistillArgs
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.host.served_rollouts import ServedRollouts
from axolotl_distill.rollout.conversation import Conversations
from axolotl_distill.rollout.evaluate import OwnText
from axolotl_distill.rollout.gather import gather_inside
from axolotl_distill.rollout.keeper import Keeper
from axolotl_distill.rollout.kept import Part, begin
from axolotl_distill.rollout.records import record_args
from axolotl_distill.rollout.step import OnPolicy
from axolotl_distill.rollout.whole import whole
from axolotl_distill.rollout.writer import Author, Writer, stop_tokens
from axolotl_distill.store import describe_tokenizer
from axolotl_distill.store.payloads import distribution_of
from axolotl_distill.teachers.fingerprint import identity
from axolotl_distill.teachers.hf import ModelTeacher
from axolotl_distill.teachers.itself import evaluating
from axolotl_distill.terms import check_terms

LOG = get_logger(__name__)


def rollouts(cfg: Any, args: DistillArgs, trainer: Any, source: Any) -> list[TrainerCallback]:
    """Has the trainer learn from text that is written as it trains; what is to be called besides.

    Raises ConfigError where nothing ends a completion, or a server could not be given the adapter.
    """
    given = args.on_policy
    assert given is not None
    callbacks: list[TrainerCallback] = []
    served = None
    if given.server is not None:
        served = ServedRollouts(cfg, given.server, trainer, lambda: _writes(trainer))
        callbacks.append(served)
    trainer.on_policy = on_policy(cfg, args, trainer, source, served)
    if given.keep is not None:
        callbacks.append(KeepRollouts(cfg, args, trainer, source))
    return callbacks


@contextmanager
def _writes(trainer: Any) -> Iterator[None]:
    """The student as it writes: no dropout, in the precision that it trains in."""
    with whole(trainer.model_wrapped), evaluating(trainer.model), trainer.accelerator.autocast():
        yield


def on_policy(
    cfg: Any, args: DistillArgs, trainer: Any, source: Any, served: ServedRollouts | None = None
) -> OnPolicy:
    """Writes the text of a trainer's steps; `served` where the student writes behind a server.
    Raises ConfigError where nothing ends a completion."""
    given = args.on_policy
    assert given is not None
    model, tokenizer, accelerator = trainer.model, trainer.processing_class, trainer.accelerator
    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    context = min(cfg.sequence_len, positions or cfg.sequence_len)

    def writer(model: Any, as_author: Any) -> Writer:
        stop = stop_tokens(model, tokenizer)
        pad = stop[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        shows = accelerator.is_main_process
        return Writer(model, as_author, given, stop, pad, context, source.vocabulary.reads, shows)

    itself = writer(model, lambda: _writes(trainer))
    student: Author = itself
    if served is not None:
        student = served.writer(given, itself.stop, context, itself.reads)
    teacher = None
    if given.seq_kd:
        assert isinstance(source.teacher, ModelTeacher)  # the config sees to it
        teacher = writer(source.teacher.model, source.teacher.as_teacher)
        teacher = replace(teacher, shown=source.context)
    LOG.info(
        f"axolotl-distill: with probability {given.lmbda:g} a step learns from the student's own "
        f"text, else from {'the teacher’s' if given.seq_kd else 'the data'}"
    )
    evaluation = None
    if given.evaluate:
        collate = trainer.eval_data_collator
        evaluation = OwnText(
            student=itself,
            most=given.evaluate,
            drop=given.truncated == "drop",
            collate=collate,
            packed=collate.packed,
            sequence_len=cfg.sequence_len,
            seed=trainer.args.seed,
            rank=accelerator.process_index,
        )
    return OnPolicy(
        args=given,
        student=student,
        teacher=teacher,
        collate=trainer.data_collator,
        packed=trainer.data_collator.packed,
        sequence_len=cfg.sequence_len,
        seed=trainer.args.seed,
        rank=accelerator.process_index,
        decode=tokenizer.decode,
        warn=LOG.warning,
        device=accelerator.device,
        teacher_seconds=lambda: source.seconds,
        evaluation=evaluation,
    )


class KeepRollouts(TrainerCallback):
    """`on_policy.keep`: opens the folder when the step is known that training goes on from, and
    makes its store when training ends."""

    def __init__(self, cfg: Any, args: DistillArgs, trainer: Any, source: Any):
        assert args.on_policy is not None and args.on_policy.keep is not None
        self.folder = Path(args.on_policy.keep)
        self.cfg, self.args, self.trainer, self.source = cfg, args, trainer, source
        self.records = record_args(args, str(self.folder))
        self.part: Part | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Raises TrajectoryError for a folder that is not this run's."""
        accelerator, vocabulary = self.trainer.accelerator, self.source.vocabulary
        if accelerator.is_main_process:
            header = _store_header(self.cfg, self.records, self.trainer, vocabulary)
            aside = begin(self.folder, self._settings(), header, state.global_step)
            if aside:
                LOG.info(
                    f"axolotl-distill: {aside} rollouts in {self.folder} are of steps after "
                    f"{state.global_step}, which are taken again: they are in aside/ now"
                )
        accelerator.wait_for_everyone()
        self.part = Part(self.folder, accelerator.process_index)
        keeper = Keeper(
            part=self.part,
            conversations=Conversations(self.trainer.processing_class),
            args=self.records,
            vocab_size=vocabulary.size,
            seed=self.trainer.args.seed,
            rank=accelerator.process_index,
            about={"written by": str(self.cfg.base_model), "graded by": self.source.name},
            warn=LOG.warning,
        )
        self.trainer.on_policy.keeper = keeper
        self.source.heard = keeper.heard

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        accelerator = self.trainer.accelerator
        assert self.part is not None
        self.source.heard, self.trainer.on_policy.keeper = None, None
        self.part.close()
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            store = gather_inside(self.folder, self.trainer.processing_class.decode)
            LOG.info(
                f"axolotl-distill: no rollout was kept in {self.folder}"
                if store is None
                else f"axolotl-distill: {self.folder} has the rollouts, and {store} is a teacher "
                "store of them"
            )

    def _settings(self) -> dict[str, Any]:
        given = self.args.on_policy
        assert given is not None
        keys = ("temperature", "top_p", "top_k", "max_new_tokens", "truncated")
        return {
            "student": str(self.cfg.base_model),
            "adapter": self.cfg.adapter,
            **{f"on_policy.{key}": getattr(given, key) for key in keys},
        }


def _store_header(cfg: Any, records: CaptureArgs, trainer: Any, vocabulary: Any) -> dict[str, Any]:
    """What `new_manifest` is to be told of a store of rollouts, as JSON has it."""
    tokenizer, teacher = trainer.processing_class, records.teacher
    if teacher.self:
        terms: dict[str, Any] = {}
        about = {
            **identity(TeacherArgs.model_validate(str(cfg.base_model))),
            "self": {
                "base": "its adapter off",
                "now": "as it was in each step",
                "average": f"its weights averaged over steps, ema {teacher.ema}",
            }[teacher.own_weights],
            **teacher.model_dump(include={"context", "context_column"}, exclude_none=True),
        }
    else:
        terms, about = asdict(check_terms(teacher.model, teacher.terms)), identity(teacher)
    readable = [i for i in range(vocabulary.size) if vocabulary.reads(i)]
    payload = distribution_of(records)
    has_tail = "tail" in payload.columns
    return {
        "vocab_size": vocabulary.size,
        "payloads": [payload.model_dump()],
        "temperatures": records.own_temperatures if has_tail else [],
        "tail_estimated": estimated_at(records) if has_tail else [],
        "sequence_len": int(cfg.sequence_len),
        "tokenizer": describe_tokenizer(tokenizer, vocabulary.size, readable),
        "teacher": about,
        "terms": terms,
    }
