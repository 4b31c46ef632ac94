"""A server that is given all of the student's weights has them; one that has not is found out."""

import copy
import math
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from support.faulty_server import FaultyServer
from support.lora_server import FullServer
from support.model_types import VOCAB, tiny

from axolotl_distill.config.on_policy import OnPolicyArgs, RolloutServerArgs
from axolotl_distill.errors import ServerError
from axolotl_distill.rollout.checkpoints import Checkpoints, trial_weights
from axolotl_distill.rollout.full_sync import FullSync
from axolotl_distill.rollout.served import ServedWriter
from axolotl_distill.rollout.vllm import VLLM
from axolotl_distill.rollout.writer import Writer
from axolotl_distill.teachers.itself import evaluating

EOS, CONTEXT = 2, 60
TEXT = np.random.default_rng(0).integers(3, VOCAB, 24).tolist()
PROMPTS = [TEXT[:7], TEXT[3:15], [5]]


def student(**changes):
    return tiny("llama", attention_dropout=0.3, **changes).train()


def learn(model, seed, size=0.02):
    torch.manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(size * torch.randn_like(parameter))


@contextmanager
def served(folder, model, *, base=None, there=None, timeout=20.0, **changes):
    behind = FullServer(base or copy.deepcopy(model).eval(), None, **changes)
    with FaultyServer(behind.handlers) as server:
        vllm = VLLM(RolloutServerArgs(base_url=server.url, retries=2, timeout=timeout))
        said = []
        sync = FullSync(
            *(model, vllm, Checkpoints(folder, there), "student", TEXT),
            *(lambda: evaluating(model), said.append),
        )
        sync.behind, sync.http, sync.said = behind, server, said
        yield sync
        vllm.close()


@pytest.mark.parametrize("tied", [False, True])
def test_each_rollout_has_the_weights_as_they_are_then(tmp_path, tied):
    model = student(tie_word_embeddings=tied)
    args = OnPolicyArgs(max_new_tokens=12, top_k=1)
    own = Writer(
        *(model, lambda: evaluating(model), args, (EOS,), EOS, CONTEXT, lambda token: True)
    )
    with served(tmp_path, model) as sync:
        author = ServedWriter(sync.vllm, args, (EOS,), CONTEXT, lambda token: True, sync)
        for step in (1, 2, 5):
            before = copy.deepcopy(model.state_dict())
            assert author.prepare(step)["sync_gap"] < 1e-4 and author.name == "student"
            assert author.write(PROMPTS, step) == own.write(PROMPTS, step)
            assert all(torch.equal(before[n], v) for n, v in model.state_dict().items())
            # What the server has read is not kept: it is as large as the model.
            assert not list(tmp_path.iterdir())
            learn(model, step)
        versions = [name.split("-", 3)[3] for name in sync.behind.reloads]
        assert versions == ["first", "trial", "step-1", "step-2", "step-5"]
        with pytest.raises(ServerError, match="still has other weights"):
            sync.check("what it had")
        sync.end()
    assert all(module.training for module in model.modules())
    assert len(sync.said) == 1 and "trial ones" in sync.said[0]


def without(*parts):
    return lambda tensors: {n: t for n, t in tensors.items() if not any(p in n for p in parts)}


def crossed(tensors):
    return {n.replace("q_proj", "?").replace("o_proj", "q_proj"): t for n, t in tensors.items()}


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"skips": True}, r"trial weights.*still has other weights"),
        ({"spoil": without("lm_head")}, "passed over some"),
        ({"spoil": without("layers.1.mlp.up_proj")}, "passed over some"),
        ({"spoil": without("norm")}, "passed over some"),
        ({"spoil": crossed}, r"trial weights.*differ"),
        ({"forgets": False}, "prefix cache"),
        ({"busy": True}, "did not empty its prefix cache"),
        ({"there": "/not/there"}, "adapters_there"),
    ],
)
def test_a_server_that_says_yes_and_does_not(tmp_path, changes, said):
    """At once, though the student's first weights are those that it has: trial ones are not."""
    with (
        served(tmp_path, student(), **changes) as sync,
        pytest.raises(ServerError, match=said),
    ):
        sync(1)
    assert not list(tmp_path.iterdir())


def test_a_reload_that_takes_long_is_not_sent_again(tmp_path):
    """The server would be at two of them, and the files are gone after the first."""
    with (
        served(tmp_path, student(), timeout=1.0, takes=2.5) as sync,
        pytest.raises(ServerError, match=r"within 1 seconds \(`distill.on_policy.server.timeout`"),
    ):
        sync(1)
    assert len(sync.behind.reloads) == 1 and not list(tmp_path.iterdir())


def test_a_reload_that_is_skipped_later_is_found(tmp_path):
    model = student()
    with served(tmp_path, model) as sync:
        sync(1)
        sync.behind.skips = True
        sync(2)  # nothing was learnt: nothing is missing
        learn(model, 1)
        with pytest.raises(ServerError, match=r"before step 3.*still has other weights"):
            sync(3)


def test_a_server_that_had_other_weights_is_given_these(tmp_path):
    """One that another run left, or this one before it was resumed."""
    other = student().eval()
    learn(other, 7)
    model = student()
    left = tmp_path / "axolotl-distill-0-step-9"
    left.mkdir()
    (tmp_path / ".axolotl-distill-0-step-10").mkdir()
    with served(tmp_path, model, base=other) as sync:
        assert sync(1)[1]["sync_gap"] < 1e-4
    assert not list(tmp_path.iterdir())


def test_a_head_that_stays_names_ties(tmp_path):
    """As vLLM's CPU build does: what the head computes with is a packed copy."""
    model = student(tie_word_embeddings=True)
    base = copy.deepcopy(model).eval()
    base.lm_head.weight = torch.nn.Parameter(base.lm_head.weight.detach().clone())
    with (
        served(tmp_path, model, base=base) as sync,
        pytest.raises(ServerError, match=r"trial weights.*untie"),
    ):
        sync(1)


def test_weights_that_are_no_numbers_are_not_close(tmp_path):
    model = student()
    with served(tmp_path, model) as sync:
        sync(1)
        model.model.norm.weight.data.fill_(math.nan)
        with pytest.raises(ServerError, match="differ by nan nats"):
            sync.check("what it had")


def test_the_trial_leaves_no_trace_and_moves_all():
    model = student()
    model.register_parameter("zeros", torch.nn.Parameter(torch.zeros(3)))
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ZeroDivisionError), trial_weights(model, -3):
        assert all(not torch.equal(before[n], v) for n, v in model.state_dict().items())
        raise ZeroDivisionError
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_a_disk_that_is_full_leaves_nothing(tmp_path):
    model = student()
    with served(tmp_path, model) as sync:
        sync(1)

        def breaks(folder, **_):
            Path(folder).mkdir()
            (Path(folder) / "model.safetensors").write_bytes(b"half")
            raise OSError(28, "No space left on device")

        model.save_pretrained = breaks
        with pytest.raises(OSError, match="No space left"):
            sync(2)
        assert not list(tmp_path.iterdir())
