"""Whom a capture asks: a model in this process, or one behind a server. Each is imported when it
is needed."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from axolotl_distill.config.capture import CaptureArgs
from axolotl_distill.store import Manifest, describe_tokenizer

if TYPE_CHECKING:
    from axolotl_distill.capture.graded import GradedSource


@dataclass(frozen=True)
class Vocabulary:
    """The ids that teacher and student share, what a manifest says of the tokenizer that they
    belong to, and what somebody should know of it."""

    size: int
    tokenizer: dict[str, Any]
    note: str = ""


def vocabulary_of(
    args: CaptureArgs, rows: Any, tokenizer: Any, finished: Manifest | None = None
) -> Vocabulary:
    """Found before a store is begun or a weight is read; from the store itself where it
    is `finished`. Raises what the comparison of tokenizers does."""
    if finished is not None:
        return Vocabulary(finished.vocab_size, dict(finished.tokenizer))
    note = ""
    if args.teacher.server is not None:
        from axolotl_distill.teachers.server import ServerTeacher

        with ServerTeacher(args.teacher, vocab_size=len(tokenizer)) as teacher:
            shared = teacher.check(tokenizer, longest=max(len(ids) for ids in rows["input_ids"]))
        note = (
            f"{teacher.note} "
            f"Which weights a server has it does not tell: that `{args.teacher.model}` stays the "
            "same model until the store is complete is for you to see to."
        ).lstrip()
    else:
        from axolotl_distill.teachers.tokenizer import local_vocabulary

        shared, compared = local_vocabulary(args.teacher, tokenizer)
        if not compared:
            note = (
                f"{args.teacher.model} has no tokenizer: whether it reads text as the student is "
                "unknown."
            )
    used = shared.check_text(rows, args.teacher.model)
    return Vocabulary(shared.size, describe_tokenizer(tokenizer, shared.size, used), note)


def vocabulary_of_import(
    tokenizer: Any, base: str, *, trust_remote_code: bool, rows: Any, teacher: str
) -> Vocabulary:
    """Of a teacher that answered elsewhere: it is taken to have the tokenizer of the student's
    base model, without what the config adds to it. Raises what the comparison of tokenizers does.
    """
    from transformers import AutoTokenizer

    from axolotl_distill.teachers.tokenizer import compare_tokenizers, share

    plain = AutoTokenizer.from_pretrained(base, trust_remote_code=trust_remote_code)
    shared = share(tokenizer, compare_tokenizers(base, plain, tokenizer))
    used = shared.check_text(rows, teacher)
    return Vocabulary(shared.size, describe_tokenizer(tokenizer, shared.size, used))


def estimated_at(args: CaptureArgs) -> list[float]:
    """The temperatures, as the store has them, at which this teacher's tail is not known: a server
    gives its own alone."""
    if args.teacher.server is None:
        return []
    return [temperature for temperature in args.own_temperatures if temperature != 1.0]


@contextmanager
def opened(args: CaptureArgs, vocab_size: int) -> Iterator["GradedSource"]:
    """The teacher, loaded into this process, or reached."""
    from axolotl_distill.capture.graded import GradedSource

    if args.teacher.server is not None:
        from axolotl_distill.teachers.server import ServerTeacher

        with ServerTeacher(args.teacher, vocab_size=vocab_size) as teacher:
            yield GradedSource(teacher, args)
        return
    from axolotl_distill.teachers.hf import HFTeacher

    model = HFTeacher(args.teacher, vocab_size=vocab_size)
    # A batch takes a CPU seconds, and one that is larger gains it nothing. What is under way is
    # what a kill costs.
    tokens = args.batch_tokens or (2048 if model.device == "cpu" else 8192)
    yield GradedSource(model, args, tokens)
