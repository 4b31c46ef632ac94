"""A server that holds the student writes as it does, and one that does not is found out."""

import copy
import math
from contextlib import contextmanager, nullcontext

import numpy as np
import pytest
import torch
from support.faulty_server import FaultyServer
from support.live import another
from support.lora_server import LoraServer, student
from support.model_types import VOCAB, tiny

from axolotl_distill.config.on_policy import OnPolicyArgs, RolloutServerArgs
from axolotl_distill.errors import ServerError
from axolotl_distill.host.served_rollouts import on_first
from axolotl_distill.rollout.adapters import Adapters, trial_adapter
from axolotl_distill.rollout.served import ServedWriter
from axolotl_distill.rollout.sync import Sync
from axolotl_distill.rollout.vllm import VLLM
from axolotl_distill.rollout.writer import Writer
from axolotl_distill.teachers.itself import evaluating

EOS, CONTEXT = 2, 60
TEXT = np.random.default_rng(0).integers(3, VOCAB, 24).tolist()
PROMPTS = [TEXT[:7], TEXT[3:15], [5], TEXT[:7]]


def learn(model, seed, size=0.05):
    """A step that an optimizer might take."""
    torch.manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.add_(size * torch.randn_like(parameter))


@contextmanager
def served(folder, model, *, base=None, faults=None, tolerance=0.1, **changes):
    behind = LoraServer(base or tiny("llama"), None, **changes)
    quiet = faults or (lambda number, path, body: None)
    with FaultyServer(behind.handlers, quiet) as server:
        args = RolloutServerArgs(base_url=server.url, retries=2, tolerance=tolerance, timeout=20.0)
        vllm = VLLM(args)
        said = []

        def as_reader():
            return evaluating(model)

        sync = Sync(model, vllm, Adapters(folder), "student", TEXT, as_reader, said.append)
        sync.behind, sync.http, sync.said = behind, server, said
        yield sync
        vllm.close()


def served_writer(sync, **args):
    given = OnPolicyArgs(**{"max_new_tokens": 12, **args})
    return ServedWriter(sync.vllm, given, (EOS,), CONTEXT, lambda token: True, sync)


def test_each_rollout_has_a_version_and_the_one_before_is_forgotten(tmp_path):
    model = student()
    with served(tmp_path, model) as sync:
        for step in (1, 2, 5):
            name, found = sync(step)
            assert name.endswith(f"-step-{step}") and found["sync_gap"] < 1e-4
            assert list(sync.behind.models) == ["student", name]
            assert [path.name for path in tmp_path.iterdir()] == [name]
            learn(model, step)
        # What was found before is of the weights before.
        with pytest.raises(ServerError, match="adapter of another step"):
            sync.check(name, "what it had")
        sync.end()
        assert list(sync.behind.models) == ["student"] and not list(tmp_path.iterdir())
    assert model.training and "a trial adapter" in sync.said[0]
    assert all(module.training for module in model.modules())


def test_the_trial_leaves_no_trace():
    model = student()
    learn(model, 1)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ZeroDivisionError), trial_adapter(model, 2):
        assert any(not torch.equal(before[n], v) for n, v in model.state_dict().items())
        raise ZeroDivisionError
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_what_a_killed_run_left_is_forgotten(tmp_path):
    model = student()
    with served(tmp_path, model) as sync:
        left, _ = sync(1)
        (tmp_path / f".{left}").mkdir()
        again = Sync(model, sync.vllm, Adapters(tmp_path), "student", TEXT, nullcontext)
        model.eval()
        name, _ = again(1)
        assert name != left and list(sync.behind.models) == ["student", name]
        assert [path.name for path in tmp_path.iterdir()] == [name]


def renamed(tensors):
    return {name.replace("model.model.", "model.language_model."): t for name, t in tensors.items()}


def without(*modules):
    return lambda tensors: {n: t for n, t in tensors.items() if not any(m in n for m in modules)}


def twice(tensors):
    return {name: 2 * t if "lora_B" in name else t for name, t in tensors.items()}


def shuffled(tensors):
    return {name: t.roll(1, 0) if "lora_B" in name else t for name, t in tensors.items()}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"spoil": renamed}, "answers as its base model"),
        ({"stale": lambda name: "student"}, "answers as its base model"),
        ({"spoil": without("v_proj")}, "does not take all modules"),
        ({"spoil": without("layers.1.")}, "does not take all modules"),
        ({"spoil": twice}, "does not take all modules"),
        ({"spoil": shuffled}, "does not take all modules"),
        ({"writes": lambda name: "student"}, "prefix cache"),
        ({"base": another("llama")}, "is not the student's base model"),
    ],
)
def test_a_server_that_says_yes_and_does_not(tmp_path, changes, said):
    """At once, though a new adapter is zero: a trial one is not."""
    with (
        served(tmp_path, student(), **changes) as sync,
        pytest.raises(ServerError, match=said) as refused,
    ):
        sync(1)
    assert "nats a token" in str(refused.value)
    assert list(sync.behind.models) == ["student"] and not list(tmp_path.iterdir())


def test_weights_that_are_no_numbers_are_not_close(tmp_path):
    model = student()
    with served(tmp_path, model) as sync:
        name, _ = sync(1)
        next(p for n, p in model.named_parameters() if "lora_B" in n).data.fill_(math.nan)
        with pytest.raises(ServerError, match="differ by nan nats"):
            sync.check(name, "what it had")


def test_an_older_adapter_is_found_when_it_answers(tmp_path):
    model, kept = student(), []

    def first(name):
        kept.append(name)
        steps = [name for name in kept if "-step-" in name]
        return steps[0] if steps and "-step-" in name else name

    with served(tmp_path, model, stale=first) as sync:
        old, _ = sync(1)
        sync.behind.unload = lambda body: "Success"
        sync.http.handlers["/v1/unload_lora_adapter"] = sync.behind.unload
        learn(model, 1)
        with pytest.raises(ServerError, match=r"answers as its base|another step"):
            sync(2)
        assert old in sync.behind.models


def test_the_likeliest_tokens_are_those_of_the_student_itself(tmp_path):
    model = student()
    learn(model, 3)
    own = Writer(
        *(model, lambda: evaluating(model), OnPolicyArgs(max_new_tokens=12, top_k=1)),
        *((EOS,), EOS, CONTEXT, lambda token: True),
    )
    with served(tmp_path, model) as sync:
        author = served_writer(sync, top_k=1)
        author.prepare(1)
        assert author.write(PROMPTS, 1) == own.write(PROMPTS, 1)
        sent = [r.body for r in sync.http.requests if "max_tokens" in r.body][-len(PROMPTS) :]
    for body in sent:
        assert body["model"] == author.name and body["ignore_eos"] and body["top_k"] == 1
        assert body["repetition_penalty"] == 1.0 and body["min_p"] == 0.0
    assert len({body["seed"] for body in sent}) == len(PROMPTS)


def test_draws_follow_from_the_seed(tmp_path):
    model = student()
    with served(tmp_path, model) as sync:
        author = served_writer(sync)
        author.prepare(1)
        first = author.write(PROMPTS, 7)
        assert first == author.write(PROMPTS, 7) != author.write(PROMPTS, 8)
        assert first[0] != first[3]  # the same prompt, another draw
        assert [len(c.ids) for c in first if not c.finished] == [12] * sum(
            not c.finished for c in first
        )
        short = ServedWriter(sync.vllm, author.args, (EOS,), 14, lambda token: True, sync)
        short.name = author.name
        longest = [
            len(p) + len(c.ids) for p, c in zip(PROMPTS, short.write(PROMPTS, 7), strict=True)
        ]
        assert max(longest) <= 14
        stops = ServedWriter(sync.vllm, author.args, tuple(range(40)), 60, lambda t: True, sync)
        stops.name = author.name
        written = stops.write(PROMPTS, 7)
        assert any(c.finished for c in written)
        assert all((c.ids[-1] < 40) is c.finished for c in written)


BROKEN = {
    "no tokens": lambda c: {**c, "token_ids": None},
    "none at all": lambda c: {**c, "token_ids": []},
    "too few": lambda c: {**c, "token_ids": c["token_ids"][:-1]},
    "another prompt": lambda c: {**c, "prompt_token_ids": [1, 2, 3]},
    "no logprobs": lambda c: {**c, "logprobs": None},
    "a null": lambda c: {**c, "logprobs": {"token_logprobs": [None] * len(c["token_ids"])}},
    "NaN": lambda c: {**c, "logprobs": {"token_logprobs": [math.nan] * len(c["token_ids"])}},
    "a word": lambda c: {**c, "token_ids": ["5"] * len(c["token_ids"])},
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_answer_is_asked_for_again_and_then_ends_the_run(tmp_path, kind):
    model, left = student(), [1]

    def once(choice):
        if left and "token_ids" in choice and left.pop():
            return BROKEN[kind](choice)
        return choice

    with served(tmp_path, model) as sync:
        author = served_writer(sync, top_k=1)
        author.prepare(1)
        expected = author.write(PROMPTS, 1)
        sync.behind.answer = once
        assert author.write(PROMPTS, 1) == expected and not left
        sync.behind.answer = BROKEN[kind]
        with pytest.raises(ServerError, match=r"Rollout, prompt \d .*from its last checkpoint"):
            author.write(PROMPTS[:1], 1)


def test_a_dead_server(tmp_path):
    model = student()
    with served(tmp_path, model) as sync:
        author = served_writer(sync)
        author.prepare(1)
        sync.http.faults = lambda number, path, body: "close"
        with pytest.raises(ServerError, match="does not answer"):
            author.write(PROMPTS, 1)
        with pytest.raises(ServerError, match="Is the server up"):
            author.prepare(2)


def test_what_one_process_finds_all_are_told():
    class Alone:
        is_main_process, num_processes = True, 1

    assert on_first(Alone(), lambda: 5) == 5
    with pytest.raises(ServerError):
        on_first(Alone(), lambda: (_ for _ in ()).throw(ServerError("no")))
