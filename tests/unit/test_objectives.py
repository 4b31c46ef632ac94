"""Several objectives in one forward, one of them with parameters of its own."""

import pytest
import torch
from distill_kernels import DistillSpec
from safetensors.torch import load_file
from support.losses import attach, batch_of, settings
from support.stores import capture_rows, random_rows
from torch import nn

from axolotl_distill.objectives.base import Objective, Term
from axolotl_distill.objectives.forward import attach_distill_forward
from axolotl_distill.objectives.logits import LogitsObjective
from axolotl_distill.signal.batch import IGNORE
from axolotl_distill.signal.source import StoredSignal


class Nearness(Objective):
    """The squared distance of hidden states from a point that is learnt."""

    def __init__(self, dim):
        super().__init__()
        self.point = nn.Parameter(torch.full((dim,), 0.5))
        self.seen = []

    def forward(self, student, signal, targets, weights):
        self.seen.append((signal, targets.numel()))
        counted = targets != IGNORE
        total = ((student.states - self.point).square().sum(-1) * counted).sum()
        return Term(total, {"distance": (total.detach(), counted.sum())})


@pytest.fixture
def batch(tmp_path, tiny_model, tokenizer):
    rows = random_rows(tokenizer, [12, 7], seed=3)
    store = capture_rows(tmp_path / "store", lambda: tiny_model(seed=1), rows, k=8)
    return batch_of(store, tokenizer)


def both(model, how):
    near = Nearness(model.config.hidden_size)
    source = StoredSignal(how.vocab_size, how.spec.support, how.spec.temperature)
    attach_distill_forward(model, [LogitsObjective(how.spec, "torch"), near], source)
    return near


def test_their_terms_are_added(batch, tiny_model, tokenizer):
    how, alone, model = settings(tokenizer), tiny_model(), tiny_model()
    attach(alone, how)
    near = both(model, how)
    expected, out = alone(**batch), model(**batch)
    distance, count = out.metrics["distance"]
    assert count == expected.metrics["loss"][1] == (batch["shift_labels"] != IGNORE).sum()
    assert out.loss.item() == pytest.approx((expected.loss + distance / count).item(), rel=1e-5)
    for name, pair in expected.metrics.items():
        assert name == "loss" or torch.equal(torch.stack(pair), torch.stack(out.metrics[name]))
    # It wanted no signal; one position counts for nothing.
    assert near.seen == [(None, int(count) + 1)]


def test_parameters_of_its_own_learn_and_are_not_saved(batch, tiny_model, tokenizer, tmp_path):
    model = tiny_model()
    near = both(model, settings(tokenizer))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    before = near.point.detach().clone()
    model(**batch).loss.backward()
    optimizer.step()
    assert not torch.equal(near.point, before)
    model.save_pretrained(tmp_path / "saved")
    saved = load_file(tmp_path / "saved/model.safetensors")
    assert "model.norm.weight" in saved and not any("distill" in name for name in saved)


def test_what_is_no_kl_is_not_called_one(batch, tiny_model, tokenizer):
    for divergence, name in (("jsd", "kd"), ("reverse_kl", "kl"), ("adaptive_kl", "kd")):
        model = tiny_model()
        spec = DistillSpec(divergence=divergence, temperature=2.0, reduction="sum")
        attach(model, settings(tokenizer)._replace(spec=spec))
        assert {"kl", "kd"} & set(model(**batch).metrics) == {name}
