"""Hidden states: the loss of each pair by its formula in float64, however the batch is laid out."""

import math
from types import SimpleNamespace

import pytest
import torch
from safetensors import safe_open
from support.live import ALL, IGNORE, packed, padded, texts
from support.model_types import VOCAB, tiny

from axolotl_distill.config.distill import DistillArgs, parse_distill
from axolotl_distill.config.hidden import HiddenArgs, paired
from axolotl_distill.errors import ConfigError
from axolotl_distill.host.hidden import (
    FILE,
    give_own_rate,
    hidden_findings,
    hidden_plan,
    load_projections,
    projections_of,
    save_projections,
)
from axolotl_distill.objectives.forward import attach_distill_forward
from axolotl_distill.objectives.hidden import HiddenObjective, hidden_loss
from axolotl_distill.objectives.logits import logits_objective
from axolotl_distill.signal.live import LiveSignal
from axolotl_distill.signal.signal import Want
from axolotl_distill.teachers.hf import ModelTeacher

KINDS = ("mse", "cosine", "normalized_mse")
PAIRS = [(0, 2), (2, 1), (1, 2)]
TEXTS = texts([17, 9, 24, 5])
# The same positions are packed with sdpa's mask as they are read one by one.
PACKED = {k: v for k, v in packed(TEXTS).items() if k != "attention_mask"}
BATCHES = {"right": padded(TEXTS), "left": padded(TEXTS, left=True), "packed": PACKED}


def formula(own, other, kind):
    """One position, as lists of numbers: the loss and its derivative by each number of `own`."""
    size = len(own)
    if kind == "cosine":
        dot = math.fsum(a * b for a, b in zip(own, other, strict=True))
        a, b = (math.sqrt(math.fsum(x * x for x in vector)) for vector in (own, other))
        slope = [x * dot / (a**3 * b) - y / (a * b) for x, y in zip(own, other, strict=True)]
        return 1 - dot / (a * b), slope
    scale = size if kind == "mse" else math.fsum(y * y for y in other)
    gaps = [x - y for x, y in zip(own, other, strict=True)]
    return math.fsum(gap * gap for gap in gaps) / scale, [2 * gap / scale for gap in gaps]


@pytest.mark.parametrize("kind", KINDS)
def test_each_loss_and_its_gradient_is_the_formula(kind):
    generator = torch.Generator().manual_seed(0)
    own, other = torch.randn(2, 6, 11, generator=generator, dtype=torch.float64)
    own.requires_grad_()
    loss = hidden_loss(own, other, kind)
    loss.sum().backward()
    for row in range(6):
        value, slope = formula(own[row].tolist(), other[row].tolist(), kind)
        assert loss[row].item() == pytest.approx(value, rel=1e-12)
        assert own.grad[row].tolist() == pytest.approx(slope, rel=1e-10, abs=1e-14)
    assert hidden_loss(other, other, kind).abs().amax() < 1e-12


def teacher(width=48):
    model = tiny("llama", layers=3, hidden_size=width)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter) * parameter.std())
    return model.eval()


def student(**values):
    return tiny("llama", layers=3, **values)


def attached(model, width=48, *, alpha=0.6, **given):
    args = DistillArgs(
        teacher="m", alpha=alpha, hidden_states={"pairs": [*map(list, PAIRS)], **given}
    )
    hidden = HiddenObjective(args.hidden_states, PAIRS, (32, width))
    want = Want(unprojected=True, layers=hidden.wants.layers)
    whole = ModelTeacher(teacher(width), "T", vocab_size=VOCAB)
    source = LiveSignal(whole, "T", ALL, want, "tail_bucket", 1.0, batched=True)
    attach_distill_forward(model, [logits_objective(args, source), hidden], source)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for weight in hidden.projections:
            weight.add_(0.1 * torch.randn(weight.shape, generator=generator))
    return hidden


def states_of(model, text):
    """[layers, S, D] in float64 of one document by itself, as transformers gives them, which gives
    the last layer's after the norm: so there is none."""
    ids = torch.tensor([text["input_ids"]])
    model.model.norm = torch.nn.Identity()
    with torch.no_grad():
        found = model(input_ids=ids, use_cache=False, output_hidden_states=True).hidden_states
    return torch.stack(found[1:])[:, 0].double()


def by_formula(hidden, kind, width):
    losses = []
    for text in TEXTS:
        own, other = states_of(student(), text), states_of(teacher(width), text)
        for at in range(len(text["input_ids"]) - 1):
            if text["labels"][at + 1] == IGNORE:
                continue
            total = 0.0
            for number, (mine, theirs) in enumerate(PAIRS):
                state = own[mine, at]
                if len(hidden.projections):
                    state = hidden.projections[number].detach().double() @ state
                total += formula(state.tolist(), other[theirs, at].tolist(), kind)[0]
            losses.append(total / len(PAIRS))
    return math.fsum(losses) / len(losses)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("layout", BATCHES)
@pytest.mark.parametrize("width", [32, 48])
def test_the_term_is_the_formula_however_the_batch_is_laid_out(kind, layout, width):
    model = student()
    hidden = attached(model, width, loss=kind, weight=3.0)
    assert len(hidden.projections) == (3 if width == 48 else 0)
    out = model(**BATCHES[layout])
    expected = by_formula(hidden, kind, width)
    total, count = out.metrics["hidden"]
    assert (total / count).item() == pytest.approx(expected, rel=1e-4)
    alone = student()
    attached(alone, width, loss=kind, weight=1e-9)
    without = alone(**BATCHES[layout]).loss.item()
    assert out.loss.item() - without == pytest.approx(3.0 * expected, rel=1e-3)


def gradients(model, batches, count):
    model.zero_grad()
    for batch in batches:
        model(**batch, num_items_in_batch=count).loss.backward()
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("kind", KINDS)
def test_accumulation_splits_nothing(kind):
    model = student()
    attached(model, loss=kind)
    count = sum(int((padded([text])["shift_labels"] != IGNORE).sum()) for text in TEXTS)
    whole = gradients(model, [padded(TEXTS)], count)
    parts = gradients(model, [padded(TEXTS[:1]), padded(TEXTS[1:3]), packed(TEXTS[3:])], count)
    assert sum("projections" in name for name in whole) == 3
    for name, gradient in whole.items():
        torch.testing.assert_close(parts[name], gradient, rtol=1e-3, atol=1e-6)


def test_weights_weigh_and_a_batch_of_nothing_has_gradients_of_zero():
    model = student()
    attached(model)
    batch = padded(TEXTS)
    once = gradients(model, [batch], 10)
    weights = (batch["shift_labels"] != IGNORE).float()
    twice = gradients(model, [{**batch, "target_weight": 2 * weights}], 10)
    for name, gradient in once.items():
        torch.testing.assert_close(twice[name], 2 * gradient, rtol=1e-4, atol=1e-6)
    nothing = {**batch, "shift_labels": torch.full_like(batch["shift_labels"], IGNORE)}
    zero = gradients(model, [nothing], 10)
    assert zero.keys() == once.keys() and not any(map(torch.any, zero.values()))


@pytest.mark.parametrize("reentrant", [True, False])
def test_gradient_checkpointing(reentrant):
    model = student()
    attached(model)
    model.train()
    batch = padded(TEXTS)
    plain = gradients(model, [batch], 10)
    model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    if reentrant:
        model.enable_input_require_grads()
    for name, gradient in gradients(model, [batch], 10).items():
        torch.testing.assert_close(gradient, plain[name], rtol=1e-4, atol=1e-7)


def test_a_layer_that_no_gradient_reaches_is_refused():
    model = student()
    attached(model)
    model.train()
    model.model.embed_tokens.requires_grad_(False)
    model.model.layers[0].requires_grad_(False)
    with pytest.raises(ConfigError, match="no gradient would reach layer 0"):
        model(**padded(TEXTS))
    model.eval()
    model(**padded(TEXTS))


def test_nothing_of_it_is_in_the_exported_model(tmp_path):
    model = student()
    attached(model)
    model.save_pretrained(tmp_path / "with")
    student().save_pretrained(tmp_path / "plain")
    keys = []
    for name in ("with", "plain"):
        with safe_open(tmp_path / name / "model.safetensors", "pt") as file:
            keys.append(set(file.keys()))
    assert keys[0] == keys[1]


def test_projections_are_saved_and_taken_up(tmp_path):
    model, other = student(), student()
    saved, loaded = attached(model).projections, attached(other).projections
    with torch.no_grad():
        saved[1].mul_(3.0)
    save_projections(model, str(tmp_path))
    load_projections(other, str(tmp_path))
    assert all(torch.equal(a, b) for a, b in zip(saved, loaded, strict=True))
    third = student()
    attached(third, 40)
    with pytest.raises(ConfigError, match="other pairs"):
        load_projections(third, str(tmp_path))
    (tmp_path / FILE).unlink()
    with pytest.raises(ConfigError, match=f"has no {FILE}"):
        load_projections(other, str(tmp_path))
    plain = student()
    attached(plain, 32)
    assert projections_of(plain) is None
    load_projections(plain, str(tmp_path))


def test_projections_have_their_own_rate():
    model = student()
    projections = attached(model).projections
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, weight_decay=0.1)
    give_own_rate(optimizer, model, 0.5)
    first, second = optimizer.param_groups
    assert second["params"] == list(projections)
    assert (second["lr"], second["weight_decay"], first["lr"]) == (0.5, 0.0, 1e-3)
    everything = sum(len(group["params"]) for group in optimizer.param_groups)
    assert everything == len(list(model.parameters()))
    without = torch.optim.SGD(model.model.parameters(), lr=1e-3)
    with pytest.raises(ConfigError, match="would never learn"):
        give_own_rate(without, model, None)


@pytest.mark.parametrize(
    "pairs, student_layers, teacher_layers, expected",
    [
        ([[0, 3], [1, 0]], 2, 4, [(0, 3), (1, 0)]),
        ("ratio", 2, 4, [(0, 1), (1, 3)]),
        ("ratio", 4, 4, [(n, n) for n in range(4)]),
        ("ratio", 3, 2, [(0, 0), (1, 0), (2, 1)]),
        (1, 25, 30, [(24, 29)]),
        (3, 24, 30, [(7, 9), (15, 19), (23, 29)]),
    ],
)
def test_pairs(pairs, student_layers, teacher_layers, expected):
    assert paired(HiddenArgs(pairs=pairs), student_layers, teacher_layers) == expected


@pytest.mark.parametrize("pairs", [[[2, 0]], [[0, 4]], 3])
def test_layers_that_are_not_there(pairs):
    with pytest.raises(ValueError, match=r"not there|there are no"):
        paired(HiddenArgs(pairs=pairs), 2, 4)


@pytest.mark.parametrize(
    "block, said",
    [
        (
            {"hidden_states": {}, "cross_tokenizer": {"method": "span"}},
            "does not go with `cross_tokenizer`",
        ),
        ({"teacher": "text", "hidden_states": {}}, "`teacher` is text"),
        (
            {
                "teacher": {"model": "m", "server": {"base_url": "http://h/v1", "engine": "vllm"}},
                "hidden_states": {},
            },
            "is behind a server",
        ),
        ({"teacher": "m", "hidden_states": {}, "on_policy": {}}, "was not tried yet"),
        (
            {"teacher": "m", "hidden_states": {}, "cross_tokenizer": {"method": "span"}},
            "does not go with `cross_tokenizer`",
        ),
        (
            {
                "cross_tokenizer": {"method": "span"},
                "capture": {"teacher": "m", "output": "s", "hidden_states": {"layers": [1]}},
            },
            "`capture.hidden_states` does not go with",
        ),
        (
            {
                "capture": {
                    "teacher": {
                        "model": "m",
                        "server": {"base_url": "http://h/v1", "engine": "vllm"},
                    },
                    "output": "s",
                    "hidden_states": {"layers": [1]},
                }
            },
            "behind a server",
        ),
        (
            {"capture": {"teacher": "m", "output": "s", "hidden_states": {"dtype": "float32"}}},
            "must be one of float16",
        ),
        ({"teacher": "m", "hidden_states": {"pairs": []}}, "must hold pairs"),
        ({"teacher": "m", "hidden_states": {"pairs": [[1, 2, 3]]}}, "must hold pairs"),
        ({"teacher": "m", "hidden_states": {"pairs": [[1, 2], [1, 2]]}}, "a pair twice"),
        ({"teacher": "m", "hidden_states": {"pairs": 0}}, "at least 1"),
        ({"teacher": "m", "hidden_states": {"lambda": 1}}, "unknown key"),
        ({"teacher": "m", "hidden_states": {"loss": "l1"}}, "must be one of mse"),
        ({"teacher": "m", "hidden_states": {"weight": 0}}, "greater than 0"),
    ],
)
def test_what_a_yaml_may_not_say(block, said):
    with pytest.raises(ConfigError, match=said):
        parse_distill(block)


@pytest.mark.parametrize("key", ["fsdp_config", "deepspeed", "torch_compile"])
def test_what_it_was_not_shown_to_go_with(key):
    args = parse_distill({"teacher": "m", "hidden_states": {}})
    (found,) = hidden_findings({key: {"x": 1}}, args)
    assert found.key == key
    assert not list(hidden_findings({}, args))


def test_the_plan_is_made_from_configs(tmp_path):
    teacher().config.save_pretrained(tmp_path / "teacher")
    student().config.save_pretrained(tmp_path / "student")
    cfg = SimpleNamespace(
        base_model_config=None, base_model=str(tmp_path / "student"), trust_remote_code=None
    )
    block = {"teacher": str(tmp_path / "teacher"), "hidden_states": {"pairs": [[2, 0]]}}
    plan = hidden_plan(cfg, parse_distill(block))
    assert (plan.pairs, plan.widths) == ([(2, 0)], (32, 48))
    block["hidden_states"]["pairs"] = [[0, 3]]
    with pytest.raises(ConfigError, match=r"pairs`: \[0, 3\] is not there"):
        hidden_plan(cfg, parse_distill(block))
    assert hidden_plan(cfg, parse_distill({"teacher": "self"})) is None
