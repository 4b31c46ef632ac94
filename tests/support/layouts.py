"""Layouts of log-probabilities as their producers write them, from chats that a model scored."""

import json

import torch
from support.synthetic import about_rows, manifest

from axolotl_distill.capture import Capture
from axolotl_distill.capture.imported import ImportedRows, ImportedSource
from axolotl_distill.capture.layouts import find_layout
from axolotl_distill.capture.layouts.files import open_rows
from axolotl_distill.capture.layouts.tokens import TokenIds
from axolotl_distill.store import verify_store

K = 6
CHATS = [
    ("Say hello in French.", "Bonjour, façade!"),
    ("Count to three.", "1, 2, 3 🙂"),
    ("日本語は?", "はい、少し。"),
]


class Chat:
    """One chat with what the model expects at each of its tokens."""

    def __init__(self, model, question, answer):
        tokenizer = model.tokenizer
        self.messages = [{"role": "user", "content": question}]
        self.answer = answer
        self.prompt = tokenizer.apply_chat_template(
            self.messages, add_generation_prompt=True, return_dict=False
        )
        written = tokenizer(f"{answer}<|im_end|>", add_special_tokens=False)["input_ids"]
        self.ids = [*self.prompt, *written]
        with torch.no_grad():
            logits = model.eval()(input_ids=torch.tensor([self.ids])).logits[0]
        # A teacher that wrote this, mostly: every third token is none of its likeliest.
        for place, token in enumerate(self.ids[1:]):
            if place % 3:
                logits[place, token] = logits[place].max() + 1.0
        self.logprobs = logits.double().log_softmax(-1)
        self.start = len(self.prompt)

    def top(self, token):
        """What was expected where token number `token` came: (ids, logprobs), likeliest first."""
        top = self.logprobs[token - 1].topk(K)
        return top.indices.tolist(), top.values.tolist()

    def own(self, token):
        return self.ids[token], self.logprobs[token - 1, self.ids[token]].item()

    @property
    def written(self):
        return range(self.start, len(self.ids))


def content(chat, name):
    """`logprobs.content`; `name` writes a token."""
    entries = []
    for token in chat.written:
        (own, logprob), (ids, logprobs) = chat.own(token), chat.top(token)
        listed = [{**name(i), "logprob": p} for i, p in zip(ids, logprobs, strict=True)]
        entries.append({**name(own), "logprob": logprob, "top_logprobs": listed})
    return entries


def by_id(token):
    # vLLM: the bytes of an alternative are those of its made-up name.
    name = f"token_id:{token}"
    return {"token": name, "bytes": list(name.encode())}


def by_bytes(tokenizer):
    """OpenAI: text, with U+FFFD where a token is a part of a character, and its true bytes."""
    names = {number: raw for raw, (number, *_) in TokenIds(tokenizer)._by_bytes.items()}

    def name(token):
        raw = names[token]
        return {"token": raw.decode(errors="replace"), "bytes": list(raw)}

    return name


def trajectories(chat, tokenizer):
    return {
        "id": "0-0",
        "prompt_id": "0",
        "sample": 0,
        "messages": chat.messages,
        "content": chat.answer,
        "usage": {"prompt_tokens": chat.start, "completion_tokens": len(chat.written)},
        "logprobs": content(chat, by_id),
        "teacher": "tiny",
    }


def openai_batch(chat, tokenizer):
    body = {
        "model": "tiny",
        "choices": [
            {
                "message": {"role": "assistant", "content": chat.answer},
                "logprobs": {"content": content(chat, by_bytes(tokenizer))},
            }
        ],
        "usage": {"prompt_tokens": chat.start},
    }
    return {"request": {"body": {"messages": chat.messages}}, "response": {"body": body}}


def vllm_chat(chat, tokenizer):
    """The sampled token comes first in its list, and the list is cut to K: the last may miss."""
    entries = content(chat, by_id)
    for entry in entries:
        own = {key: entry[key] for key in ("token", "logprob", "bytes")}
        others = [one for one in entry["top_logprobs"] if one["token"] != own["token"]]
        entry["top_logprobs"] = [own, *others][:K]
    return {
        "model": "tiny",
        "prompt_token_ids": chat.prompt,
        "prompt_logprobs": None,
        "choices": [
            {
                "message": {"content": None, "reasoning": chat.answer},
                "logprobs": {"content": entries},
                "token_ids": chat.ids[chat.start :],
            }
        ],
    }


def vllm_completion(chat, tokenizer):
    """`logprobs` of /v1/completions: K entries and the sampled token."""
    columns = {"tokens": [], "token_logprobs": [], "top_logprobs": []}
    for token in chat.written:
        (own, logprob), (ids, logprobs) = chat.own(token), chat.top(token)
        columns["tokens"].append(f"token_id:{own}")
        columns["token_logprobs"].append(logprob)
        listed = {f"token_id:{i}": p for i, p in zip(ids, logprobs, strict=True)}
        columns["top_logprobs"].append({f"token_id:{own}": logprob, **listed})
    return {
        "model": "tiny",
        "choices": [{"text": chat.answer, "logprobs": columns, "prompt_token_ids": chat.prompt}],
    }


def vllm_prompt(chat, tokenizer):
    """`prompt_logprobs` of a text that was there: every token but the first is supervised."""
    rows = [None]
    for token in range(1, len(chat.ids)):
        (own, logprob), (ids, logprobs) = chat.own(token), chat.top(token)
        rank = int((chat.logprobs[token - 1] >= logprob).sum())
        row = {str(own): {"logprob": logprob, "rank": rank}}
        for place, (i, p) in enumerate(zip(ids, logprobs, strict=True), 1):
            row[str(i)] = {"logprob": p, "rank": place}
        rows.append(row)
    return {
        "model": "tiny",
        "choices": [{"prompt_logprobs": rows, "prompt_token_ids": chat.ids}],
    }


def conversation(chat):
    return [*chat.messages, {"role": "assistant", "content": chat.answer}]


def axolotl_kd(chat, tokenizer):
    """All tokens but the first, as vLLM's prompt_logprobs without its null."""
    rows = []
    for token in range(1, len(chat.ids)):
        ids, logprobs = chat.top(token)
        rows.append(
            [{"token": f"token_id:{i}", "logprob": p} for i, p in zip(ids, logprobs, strict=True)]
        )
    return {"messages": conversation(chat), "llm_text_generation_vllm_logprobs": rows}


def axolotl_kd_v2(chat, tokenizer):
    """The completion alone: the list belongs to the end of the text."""
    found = [chat.top(token) for token in chat.written]
    return {
        "messages": conversation(chat),
        "target_token_ids": [ids for ids, _ in found],
        "logprobs": [logprobs for _, logprobs in found],
    }


def axolotl_kd_prepared(chat, tokenizer):
    """What Axolotl's own strategy makes of `axolotl_kd`, at kd_temperature 1."""
    from axolotl.integrations.kd.chat_template import ChatTemplateStrategyWithKD

    strategy = ChatTemplateStrategyWithKD.__new__(ChatTemplateStrategyWithKD)
    strategy.logprobs_field, strategy.gen_temperature, strategy.kd_temperature = (
        "logprobs",
        1.0,
        1.0,
    )
    labels = [-100] * chat.start + chat.ids[chat.start :]
    rows = axolotl_kd(chat, tokenizer)["llm_text_generation_vllm_logprobs"]
    sample = {"input_ids": list(chat.ids), "labels": labels, "logprobs": rows}
    return strategy.transform_logprobs(sample)


WRITERS = {
    trajectories: "trajectories",
    openai_batch: "openai",
    vllm_chat: "vllm",
    vllm_completion: "vllm",
    vllm_prompt: "vllm",
    axolotl_kd: "axolotl_kd",
    axolotl_kd_v2: "axolotl_kd",
    axolotl_kd_prepared: "axolotl_kd_prepared",
}


def write(folder, rows):
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def imported(path, context, layout=None, longest=1000):
    source = open_rows(path)
    name, found = find_layout(layout, source[0], str(path))
    return name, ImportedRows(source, found, context, str(path), longest=longest)


def store_of(folder, rows, tokenizer, k, temperatures=(1.0, 2.0), about=None):
    header = manifest(
        "topk",
        vocab_size=len(tokenizer),
        payloads=[{"kind": "topk", "k": k}],
        source=about or about_rows(rows),
    )
    source = ImportedSource(k, temperatures, len(tokenizer))
    with Capture(folder / "store", header, rows, tokenizer.decode, shard_records=10_000) as capture:
        report = capture(source)
    return verify_store(folder / "store"), report
