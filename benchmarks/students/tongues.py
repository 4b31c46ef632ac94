"""Students that read with another tokenizer than their teacher, and how well anyone knows a text,
whatever the tokens: in nats a byte."""

import json
import random
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from axolotl_distill.align.pieces import Pieces

Chat = list[dict[str, str]]
SYSTEM = {"role": "system", "content": "Answer in one short sentence."}


def questions(file: Path) -> list[str]:
    """The first of every row of chats."""
    return [json.loads(line)["messages"][0]["content"] for line in file.read_text().splitlines()]


def docstrings(file: Path, count: int) -> list[dict]:
    """The first question and answer of so many rows, as their authors wrote them."""
    lines = file.read_text().splitlines()[:count]
    return [{"messages": json.loads(line)["messages"][:2]} for line in lines]


def sums(count: int, seed: int) -> list[tuple[str, str]]:
    """(question, right answer): sums and differences of numbers of one to three digits."""
    draw = random.Random(seed)
    made = []
    for _ in range(count):
        first, second = (draw.randrange(10 ** draw.randint(1, 3)) for _ in range(2))
        sign, result = draw.choice((("+", first + second), ("-", first - second)))
        made.append((f"What is {first} {sign} {second}?", f"{first} {sign} {second} = {result}"))
    return made


def embeddings(old_VD: Tensor, old: Pieces, new: Pieces) -> Tensor:
    """[W, D] for the tokens of `new`: of each the mean of the old tokens into which its text is
    cut; for one without a text, or with half a character alone, the mean of all."""
    texts = [raw.decode(errors="ignore") for raw in new.bytes_of]
    cuts = [ids or [] for ids in old.cut(texts)]
    lengths = torch.tensor([len(ids) for ids in cuts])
    flat = torch.from_numpy(np.concatenate([np.asarray(ids, np.int64) for ids in cuts]))
    of = torch.arange(len(cuts)).repeat_interleave(lengths)
    made = old_VD.new_zeros(len(cuts), old_VD.shape[1]).index_add_(0, of, old_VD[flat])
    made = made / lengths.clamp_min(1).unsqueeze(1)
    made[lengths == 0] = old_VD.mean(0)
    return made


def with_tokenizer(source: Path, tokenizer, folder: Path) -> Path:
    """A copy of the model in `source` that reads with `tokenizer`."""
    model = AutoModelForCausalLM.from_pretrained(source, dtype=torch.float32)
    own = Pieces(AutoTokenizer.from_pretrained(source))
    table = embeddings(model.get_input_embeddings().weight.detach(), own, Pieces(tokenizer))
    model.resize_token_embeddings(len(table), mean_resizing=False)
    with torch.no_grad():
        model.get_input_embeddings().weight.copy_(table)
    model.tie_weights()
    model.config.bos_token_id = tokenizer.bos_token_id
    for config in (model.config, model.generation_config):
        config.eos_token_id, config.pad_token_id = tokenizer.eos_token_id, tokenizer.pad_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@dataclass(frozen=True)
class Known:
    """Sums over the answers: nats and tokens with the end of each turn and the white space that a
    template writes before it, bytes without them."""

    nats: float
    bytes: int
    tokens: int

    @property
    def nats_a_byte(self) -> float:
        return self.nats / self.bytes


@torch.inference_mode()
def known(model: PreTrainedModel, tokenizer, chats: list[Chat]) -> Known:
    """How likely a model finds the last message of each chat, as its own tokenizer cuts it."""
    nats = 0.0
    tokens = 0
    for chat in chats:
        asked = tokenizer.apply_chat_template(
            chat[:-1], add_generation_prompt=True, return_dict=True
        )["input_ids"]
        whole = tokenizer.apply_chat_template(chat, return_dict=True)["input_ids"]
        assert whole[: len(asked)] == asked, "a template writes the prompt of an answer alike"
        # A template may write white space behind the end of a turn.
        stop = len(whole) - whole[::-1].index(tokenizer.eos_token_id)
        ids = torch.tensor([whole[:stop]])
        logits = model(input_ids=ids, use_cache=False).logits[0, len(asked) - 1 : -1]
        nats += F.cross_entropy(logits.float(), ids[0, len(asked) :], reduction="sum").item()
        tokens += stop - len(asked)
    size = sum(len(chat[-1]["content"].encode()) for chat in chats)
    return Known(nats, size, tokens)
