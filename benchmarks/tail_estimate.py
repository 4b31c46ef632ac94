"""Which guess of a tail's shape serves a teacher that gives its top K at T=1 and no more.

    python benchmarks/tail_estimate.py

A server gives the K likeliest tokens at T=1. The tail's mass at another temperature depends on
how the rest is spread, which has to be guessed. "uniform" spreads it evenly; the others join the
last known token and fall so that they hold the mass that is left at T=1: as a power of the rank
(Zipf), as a geometric series, or as normally distributed logits would. "power law, fitted" takes
its exponent from the second half of the known tokens instead, and is scaled to the mass. The true
tail is known, for the teacher (SmolLM2-135M-Instruct) runs in this process. Texts: essays and
student as in gradient_error.py, and held-out chats of the demo.

    bias, rms        of the tail's log-odds, nats
    tail error       mean |estimated − true| probability of the tail
    gradient error   of the output head's weight under forward KL with a tail bucket, relative to
                     the gradient over the whole vocabulary, as in gradient_error.py
"""

import json
from statistics import NormalDist

import numpy as np
import torch
from common import ROOT, keep
from distill_kernels import DistillSpec, SparseTeacher, fused_linear_distill
from gradient_error import (
    STUDENT,
    TEACHER,
    WINDOW,
    essays,
    full_gradient,
    hidden_and_head,
)
from transformers import AutoTokenizer

from axolotl_distill.capture import tail
from axolotl_distill.store.encoding import decode_tail, encode_tail

TEMPERATURES = (2.0, 4.0)


def normal_logits(ranks: np.ndarray, vocab_size: int) -> np.ndarray:
    """How far below its mean's other side a normal variable of rank r of V lies."""
    return np.array([-NormalDist().inv_cdf(1 - (rank - 0.5) / vocab_size) for rank in ranks])


GUESSES = {
    "uniform": lambda ranks, vocab_size: np.zeros(len(ranks)),
    "power law": tail.power_law,
    "geometric": lambda ranks, vocab_size: np.asarray(ranks, dtype=np.float64),
    "normal logits": normal_logits,
}


def heldout(tokenizer) -> torch.Tensor:
    """The held-out chats of the demo as one text, int64 [TOKENS / WINDOW, WINDOW]."""
    lines = (ROOT / ".cache/pydoc-chat/heldout.jsonl").read_text().splitlines()
    ids = [
        token
        for line in lines
        for token in tokenizer.apply_chat_template(json.loads(line)["messages"], return_dict=False)
    ]
    return torch.tensor(ids[:2048]).view(-1, WINDOW)


def fitted_power_law(logprobs: np.ndarray, vocab_size: int) -> np.ndarray:
    """Log-odds int16 [R, temperatures]: least squares over the second half of the known."""
    known = np.arange(1, logprobs.shape[1] + 1)[logprobs.shape[1] // 2 :]
    centred = np.log(known) - np.log(known).mean()
    exponent = -(logprobs[:, logprobs.shape[1] // 2 :] @ centred) / (centred @ centred)
    ranks, weights = tail.rank_nodes(logprobs.shape[1], vocab_size)
    shape = -np.maximum(exponent, 0)[:, None] * np.log(ranks)
    left = np.log(np.maximum(-np.expm1(np.logaddexp.reduce(logprobs, axis=1)), tail.RESOLUTION))
    scaled = shape + (left - np.logaddexp.reduce(shape + np.log(weights), axis=1))[:, None]
    return np.stack(
        [
            encode_tail(
                np.logaddexp.reduce(scaled / T + np.log(weights), axis=1),
                np.logaddexp.reduce(logprobs / T, axis=1),
            )
            for T in TEMPERATURES
        ],
        axis=1,
    )


def true_tails(logits: torch.Tensor, ids: torch.Tensor) -> np.ndarray:
    columns = []
    for temperature in TEMPERATURES:
        scaled = logits.double() / temperature
        head = scaled.gather(1, ids).logsumexp(1)
        rest = scaled.scatter(1, ids, -torch.inf).logsumexp(1)
        columns.append(encode_tail(rest.numpy(), head.numpy()))
    return np.stack(columns, axis=1)


def gradient(student, weight, ids, logprobs, tails, column) -> torch.Tensor:
    temperature = TEMPERATURES[column]
    log_tail = torch.from_numpy(decode_tail(tails[:, column])).float()
    head = (torch.from_numpy(logprobs).float() / temperature).log_softmax(1)
    teacher = SparseTeacher(ids, head + torch.log1p(-log_tail.exp())[:, None], log_tail)
    weight = weight.clone().requires_grad_()
    spec = DistillSpec(temperature=temperature, support="tail_bucket")
    labels = torch.zeros(len(ids), dtype=torch.int64)
    fused_linear_distill(student, weight, teacher, labels, spec=spec).loss.backward()
    return weight.grad


def measure(ids: torch.Tensor, text: str) -> list[dict]:
    teacher, teacher_head = hidden_and_head(TEACHER, ids)
    student, weight = hidden_and_head(STUDENT, ids)
    logits = teacher @ teacher_head.t()
    vocab_size = logits.shape[1]
    exact = {T: full_gradient(student, weight, logits, T) for T in TEMPERATURES}
    results = []
    for k in (16, 64):
        top = logits.double().log_softmax(-1).topk(k)
        # What comes over the wire: float32.
        logprobs = top.values.float().double().numpy()
        truth = true_tails(logits, top.indices)
        kept = np.ones_like(logprobs, dtype=bool)
        guesses = {
            name: tail.tails_from_top(logprobs, kept, TEMPERATURES, vocab_size, shape)
            for name, shape in GUESSES.items()
        }
        guesses["power law, fitted"] = fitted_power_law(logprobs, vocab_size)
        guesses["true tail"] = truth
        for column, temperature in enumerate(TEMPERATURES):
            for name, guess in guesses.items():
                off = (guess[:, column].astype(float) - truth[:, column]) / 1024
                mass = np.exp(decode_tail(guess[:, column])) - np.exp(decode_tail(truth[:, column]))
                seen = gradient(student, weight, top.indices, logprobs, guess, column)
                error = (seen - exact[temperature]).norm() / exact[temperature].norm()
                results.append(
                    {
                        "text": text,
                        "k": k,
                        "temperature": temperature,
                        "guess": name,
                        "log_odds_bias": off.mean(),
                        "log_odds_rms": float(np.sqrt((off**2).mean())),
                        "tail_error": float(np.abs(mass).mean()),
                        "gradient_error": error.item(),
                    }
                )
                print(
                    f"{text:<12}{k:>3}{temperature:>4g}  {name:<20}{off.mean():>8.3f}"
                    f"{results[-1]['log_odds_rms']:>8.3f}{results[-1]['tail_error']:>9.4f}"
                    f"{error.item():>9.3f}",
                    flush=True,
                )
    return results


def main() -> None:
    tokenizer = AutoTokenizer.from_pretrained(TEACHER)
    print(f"{'text':<12}{'K':>3}{'T':>4}  {'guess':<20}{'bias':>8}{'rms':>8}{'tail':>9}{'grad':>9}")
    keep(
        "tail_estimate",
        [*measure(heldout(tokenizer), "heldout"), *measure(essays(tokenizer), "essays")],
    )


if __name__ == "__main__":
    main()
