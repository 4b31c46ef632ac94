"""Every row as the student reads it, and as a teacher with another tokenizer and template does.

The dataset's own type makes both, of the same messages, so that roles and masks are the same; the
teacher's side stands in two more columns.
"""

from dataclasses import dataclass
from typing import Any

from axolotl.prompt_strategies import load as load_strategy
from axolotl.prompt_strategies.chat_template import ChatTemplatePrompter
from axolotl.prompt_tokenizers import PromptTokenizingStrategy
from axolotl.utils.dict import DictDefault

from axolotl_distill.capture.cross import TEACHER_IDS, TEACHER_LABELS
from axolotl_distill.config.cross_tokenizer import CrossTokenizerArgs
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.datasets.types import READ_AS
from axolotl_distill.signal.batch import IGNORE
from axolotl_distill.teachers.tokenizer import other_tokenizer

COLUMNS = (TEACHER_IDS, TEACHER_LABELS)
MODULE = __name__
# Keys of an entry of `datasets` while it is read: the type that it had, and for whom.
TYPE, READER = READ_AS, "axolotl_distill_reader"
# What of the config is the student's: the teacher's template and special tokens are its own.
STUDENTS = ("chat_template", "chat_template_jinja", "eot_tokens", "special_tokens", "tokens")
# The student's `sequence_len` decides which rows there are.
ANY_LENGTH = 1 << 24


@dataclass(frozen=True)
class Reader:
    """Who reads a row too."""

    teacher: TeacherArgs
    cross: CrossTokenizerArgs


def read_too(entries: list[Any], reader: Reader) -> None:
    """Gives every dataset the type of this module, in place. Raises ConfigError for one without a
    type by name: rows that have token ids already cannot be read anew."""
    for entry in entries:
        if not isinstance(entry.get("type"), str):
            raise ConfigError(
                f"{entry.get('path')} has no `type` that says how its text is read, and the "
                "teacher reads it with its own tokenizer (`distill.cross_tokenizer`). Give it one, "
                "such as `type: chat_template`."
            )
        entry[TYPE], entry["type"] = entry["type"], MODULE
        entry[READER] = {
            "teacher": reader.teacher.model_dump(exclude_unset=True),
            "cross": reader.cross.model_dump(exclude_unset=True),
        }


class PairedStrategy(PromptTokenizingStrategy):
    """A strategy, and the same one for the teacher."""

    supports_batched = False

    def __init__(self, own: Any, theirs: Any, first: int):
        super().__init__(prompter=own.prompter, tokenizer=own.tokenizer)
        self.own, self.theirs, self.first = own, theirs, first

    def tokenize_prompt(self, prompt: dict[str, Any]) -> dict[str, Any]:
        row, read = dict(self.own.tokenize_prompt(prompt)), self.theirs.tokenize_prompt(prompt)
        ids, labels = list(read["input_ids"]), list(read["labels"])
        if labels and labels[0] != IGNORE:
            # Nothing would predict its first token.
            ids, labels = [self.first, *ids], [IGNORE, *labels]
        return row | {TEACHER_IDS: ids, TEACHER_LABELS: labels}


def load(tokenizer: Any, cfg: Any, ds_cfg: Any) -> PairedStrategy:
    """Axolotl's entry point for a dataset type. Raises ConfigError for a type that reads no text,
    and for a chat without a template of the teacher's."""
    kind, about = ds_cfg[TYPE], ds_cfg[READER]
    teacher = TeacherArgs.model_validate(dict(about["teacher"]))
    cross = CrossTokenizerArgs.model_validate(dict(about["cross"]))
    others = other_tokenizer(teacher)
    entry = DictDefault({k: v for k, v in ds_cfg.items() if k not in (TYPE, READER)})
    entry["type"] = kind
    own = load_strategy(kind, tokenizer, cfg, entry)
    if not hasattr(own, "tokenize_prompt"):
        raise ConfigError(
            f"`type: {kind}` of {entry.path} is read by Axolotl in a way of its own, and the "
            "teacher cannot read it too. Use `type: chat_template`."
        )
    settings = DictDefault({**cfg.to_dict(), **dict.fromkeys(STUDENTS)})
    settings.base_model = teacher.reads_with
    settings.sequence_len = ANY_LENGTH
    settings.chat_template = cross.chat_template or "tokenizer_default"
    is_chat = isinstance(own.prompter, ChatTemplatePrompter)
    if is_chat and not cross.chat_template and not getattr(others, "chat_template", None):
        raise ConfigError(
            f"The tokenizer of the teacher `{teacher.reads_with}` has no chat template. Name the "
            "one that it was trained with: `distill.cross_tokenizer.chat_template: chatml`, or "
            "another of Axolotl's."
        )
    for key in STUDENTS:
        entry.pop(key, None)
    first = others.bos_token_id if others.bos_token_id is not None else others.eos_token_id
    return PairedStrategy(own, load_strategy(kind, others, settings, entry), first)
