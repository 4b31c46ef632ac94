"""What `distill.on_policy` needs of a trainer that stands."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from axolotl.utils.logging import get_logger

from axolotl_distill.config.distill import DistillArgs
from axolotl_distill.rollout.step import OnPolicy
from axolotl_distill.rollout.writer import Writer, stop_tokens
from axolotl_distill.teachers.hf import ModelTeacher
from axolotl_distill.teachers.itself import evaluating

LOG = get_logger(__name__)


def on_policy(cfg: Any, args: DistillArgs, trainer: Any, source: Any) -> OnPolicy:
    """Writes the text of a trainer's steps. Raises ConfigError where nothing ends a completion."""
    given = args.on_policy
    assert given is not None
    model, tokenizer, accelerator = trainer.model, trainer.processing_class, trainer.accelerator

    @contextmanager
    def student_writes() -> Iterator[None]:
        with evaluating(model), accelerator.autocast():
            yield

    positions = getattr(model.config.get_text_config(), "max_position_embeddings", None)
    context = min(cfg.sequence_len, positions or cfg.sequence_len)

    def writer(model: Any, as_author: Any) -> Writer:
        stop = stop_tokens(model, tokenizer)
        pad = stop[0] if tokenizer.pad_token_id is None else tokenizer.pad_token_id
        return Writer(model, as_author, given, stop, pad, context, source.vocabulary.reads)

    teacher = None
    if given.seq_kd:
        assert isinstance(source.teacher, ModelTeacher)  # the config sees to it
        teacher = writer(source.teacher.model, source.teacher.as_teacher)
    LOG.info(
        f"axolotl-distill: with probability {given.lmbda:g} a step learns from the student's own "
        f"text, else from {'the teacher’s' if given.seq_kd else 'the data'}"
    )
    return OnPolicy(
        args=given,
        student=writer(model, student_writes),
        teacher=teacher,
        collate=trainer.data_collator,
        packed=trainer.data_collator.packed,
        sequence_len=cfg.sequence_len,
        seed=trainer.args.seed,
        rank=accelerator.process_index,
        decode=tokenizer.decode,
        warn=LOG.warning,
        device=accelerator.device,
    )
