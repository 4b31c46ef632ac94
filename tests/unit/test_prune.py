"""`axolotl distill prune`: a student is its teacher with layers skipped, whatever the family."""

import json
from itertools import pairwise

import pytest
import torch
from safetensors.torch import load_file
from support.cli import distill_here
from support.model_types import VOCAB, tiny
from torch.nn import ModuleList
from transformers import AutoModelForCausalLM, AutoTokenizer

from axolotl_distill.checkpoint.folder import open_checkpoint
from axolotl_distill.checkpoint.layers import chosen_layers, evenly
from axolotl_distill.checkpoint.tensors import stored_tensors, tensors_of, write_tensors
from axolotl_distill.errors import CheckpointError

FAST = "llama gemma3_text gemma2 qwen2 cohere2 gpt2 mixtral glm4_moe".split()  # noqa: SIM905
OTHERS = """
afmoe apertus arcee bloom cohere ctrl cwm deepseek_v4 diffllama doge ernie4_5 ernie4_5_moe exaone4
exaone_moe falcon_mamba flex_olmo gemma glm glm4 gpt_bigcode gpt_neox gpt_oss gptj granite
granitemoe granitemoehybrid helium hunyuan_v1_dense jamba lfm2 mamba mellum minimax ministral
mistral mpt nemotron olmo olmo2 olmo3 olmoe persimmon phi phi3 phimoe qwen2_moe qwen3 qwen3_moe
qwen3_next seed_oss smollm3 stablelm starcoder2 vaultgemma
""".split()  # noqa: SIM905
# The others are cut whichever layers are chosen.
PLACES_MATTER = {"diffllama": "lambda_init", "jamba": "other parts", "minimax": "num_hidden_layers"}
LAYERS, KEPT = 7, [0, 2, 3, 6]


def saved(folder, model_type="llama", **values):
    model = tiny(model_type, **({"layers": LAYERS} | values))
    model.save_pretrained(folder)
    return model


def logits(model, skipped=()):
    """Of a sequence; the layers `skipped` hand on what they are given."""

    def hand_on(module, args, kwargs, output):
        state = args[0] if args else kwargs["hidden_states"]
        return (state, *output[1:]) if isinstance(output, tuple) else state

    stacks = (module for module in model.modules() if isinstance(module, ModuleList))
    layers = next(stack for stack in stacks if len(stack) == model.config.num_hidden_layers)
    handles = [layers[at].register_forward_hook(hand_on, with_kwargs=True) for at in skipped]
    tokens = torch.randint(3, VOCAB, (2, 21), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        found = model.eval()(input_ids=tokens, use_cache=False).logits
    for handle in handles:
        handle.remove()
    return found


@pytest.mark.parametrize(
    "model_type", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in OTHERS)]
)
def test_a_student_is_its_teacher_without_the_layers(model_type, tmp_path):
    """Or it is refused, where what a layer is depends on its place."""
    teacher = saved(tmp_path / "teacher", model_type)
    done = distill_here(
        "prune", tmp_path / "teacher", tmp_path / "out", "--layers", "0,2-3,6", check=False
    )
    if model_type in PLACES_MATTER:
        assert PLACES_MATTER[model_type] in done.stderr and not (tmp_path / "out").exists()
        return
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert student.config.num_hidden_layers == len(KEPT)
    for name in ("layer_types", "mlp_layer_types"):
        if getattr(teacher.config, name, None):
            of_kept = [getattr(teacher.config, name)[layer] for layer in KEPT]
            assert getattr(student.config, name) == of_kept
    expected = logits(teacher, set(range(LAYERS)) - set(KEPT))
    assert not torch.allclose(expected, logits(teacher), rtol=1e-3)
    torch.testing.assert_close(logits(student), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_embeddings_norm_and_head_go_over_and_layers_are_renumbered(tied, tmp_path):
    saved(tmp_path / "teacher", tie_word_embeddings=tied)
    distill_here("prune", tmp_path / "teacher", tmp_path / "out", "--layers", "drop 0,4-5")
    before, after = (
        load_file(tmp_path / name / "model.safetensors") for name in ("teacher", "out")
    )
    place = {1: 0, 2: 1, 3: 2, 6: 3}
    expected = {}
    for name, tensor in before.items():
        parts = name.split(".")
        if parts[1] == "layers":
            if int(parts[2]) not in place:
                continue
            parts[2] = str(place[int(parts[2])])
        expected[".".join(parts)] = tensor
    assert after.keys() == expected.keys() and ("lm_head.weight" in after) is not tied
    assert all(torch.equal(after[name], tensor) for name, tensor in expected.items())


def test_a_real_teacher_with_its_tokenizer_and_note(smollm2_dir, tmp_path):
    done = distill_here("prune", smollm2_dir, tmp_path / "out", "--keep", 3, "--json")
    note = json.loads(done.stdout)
    assert note["kept"] == [0, 15, 29] and len(note["dropped"]) == 27
    assert note["teacher"] == str(smollm2_dir) and note["teacher_weights"].startswith("sha256:")
    assert note["config"] == {"num_hidden_layers": {"before": 30, "after": 3}}
    assert json.loads((tmp_path / "out" / "prune.json").read_bytes()) == note
    card = (tmp_path / "out" / "README.md").read_text()
    assert "| layers kept | 0, 15, 29 of 30 |" in card
    for name in ("generation_config.json", "tokenizer.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (smollm2_dir / name).read_bytes()
    chat = [{"role": "user", "content": "Hi"}]
    texts = [
        AutoTokenizer.from_pretrained(folder).apply_chat_template(chat, tokenize=False)
        for folder in (smollm2_dir, tmp_path / "out")
    ]
    assert texts[0] == texts[1]
    assert {path.name for path in tmp_path.iterdir()} == {"out"}


@pytest.mark.parametrize(
    "said, layers",
    [
        ("0,2,4", [0, 2, 4]),
        ("0-2, 7", [0, 1, 2, 7]),
        ("every 3", [0, 3, 6]),
        ("every 1", list(range(8))),
        ("drop 1,6-7", [0, 2, 3, 4, 5]),
    ],
)
def test_how_layers_are_said(said, layers):
    assert chosen_layers(said, 8) == layers


@pytest.mark.parametrize(
    "said, why",
    [
        ("0,8", "no layer 8; its 8 layers count from 0 to 7"),
        ("drop 3-9", "no layer 9"),
        ("-1", "'-1' is no layer"),
        ("all", "'all' is no layer"),
        ("", "'' is no layer"),
        ("every 0", "a number from 1"),
        ("every x", "a number from 1"),
        ("every ²", "a number from 1"),
        ("0-99999999999999", "no layer 99999999999999"),
        ("2,1", "in their order"),
        ("5-3", "in their order"),
        ("1,1", "once each"),
        ("drop 0-7", "leaves no layer"),
    ],
)
def test_layers_that_are_none(said, why):
    with pytest.raises(CheckpointError, match=why):
        chosen_layers(said, 8)


@pytest.mark.parametrize("number", [1, 2, 7, 30, 61])
def test_evenly_spread_layers_have_both_ends_and_like_gaps(number):
    for keep in range(1, number + 1):
        layers = evenly(keep, number)
        assert len(set(layers)) == keep and layers == sorted(layers) and layers[0] == 0
        gaps = {right - left for left, right in pairwise(layers)}
        assert not gaps or (layers[-1] == number - 1 and max(gaps) - min(gaps) <= 1)
    with pytest.raises(CheckpointError, match=f"has {number} layers"):
        evenly(number + 1, number)


def test_shards_are_written_and_read_as_one_file(tmp_path):
    model = tiny("llama", layers=4)
    model.save_pretrained(tmp_path / "teacher", max_shard_size="20KB")
    assert len(list((tmp_path / "teacher").glob("*.safetensors"))) > 2
    distill_here("prune", tmp_path / "teacher", tmp_path / "out", "--layers", "every 2")
    student = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    torch.testing.assert_close(logits(student), logits(model, {1, 3}))
    found = stored_tensors(tmp_path / "teacher")
    (tmp_path / "again").mkdir()
    write_tensors(tmp_path / "again", found, most=20_000)
    again = stored_tensors(tmp_path / "again")
    assert len({tensor.file for tensor in again.values()}) > 2
    assert {name: tensor.read() for name, tensor in again.items()} == {
        name: tensor.read() for name, tensor in found.items()
    }


def refused(tmp_path, *options):
    before = sorted(path.name for path in tmp_path.iterdir())
    done = distill_here("prune", *options, check=False)
    assert done.returncode and done.stdout == ""
    assert sorted(path.name for path in tmp_path.iterdir()) == before
    return done.stderr


def test_what_is_refused(tmp_path):
    folder, out = tmp_path / "teacher", tmp_path / "out"
    saved(folder)
    assert "either --layers or --keep" in refused(tmp_path, folder, out)
    assert "either --layers or --keep" in refused(
        tmp_path, folder, out, "--layers", "0", "--keep", 1
    )
    assert "no layer 7" in refused(tmp_path, folder, out, "--layers", "7")
    assert "hf download" in refused(tmp_path, tmp_path / "none", out, "--keep", 2)
    assert "is there already" in refused(tmp_path, folder, folder, "--keep", 2)

    def changed(**values):
        written = json.loads((folder / "config.json").read_bytes()) | values
        (folder / "config.json").write_text(json.dumps(written))
        return refused(tmp_path, folder, out, "--keep", 2)

    assert "quantised" in changed(quantization_config={"quant_method": "fp8"})
    assert "code of its own" in changed(auto_map={"AutoConfig": "x.Y"})
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')
    assert "not the config of a model" in refused(tmp_path, folder, out, "--keep", 2)


@pytest.mark.parametrize(
    "text", ["null", "[1]", "{", '"llama"', '{"model_type": "llama", "num_hidden_layers": "four"}']
)
def test_what_is_no_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json is not the config of a model"):
        open_checkpoint(str(tmp_path))


def test_files_that_are_not_whole_are_refused(tmp_path):
    folder, out = tmp_path / "teacher", tmp_path / "out"
    saved(folder)
    file = folder / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-64])
    assert "not a whole safetensors file" in refused(tmp_path, folder, out, "--keep", 2)
    file.write_bytes(whole[:4])
    assert "not a whole safetensors file" in refused(tmp_path, folder, out, "--keep", 2)
    file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    assert "but pytorch_model.bin" in refused(tmp_path, folder, out, "--keep", 2)


def test_a_teacher_that_lacks_a_weight_is_refused(tmp_path):
    saved(tmp_path / "teacher")
    file = tmp_path / "teacher" / "model.safetensors"
    tensors = tensors_of(file)
    del tensors["model.layers.6.mlp.up_proj.weight"]
    (tmp_path / "part").mkdir()
    for name in ("config.json", "generation_config.json"):
        (tmp_path / "part" / name).write_bytes((tmp_path / "teacher" / name).read_bytes())
    write_tensors(tmp_path / "part", tensors)
    said = refused(tmp_path, tmp_path / "part", tmp_path / "out", "--layers", "0,6")
    assert "model.layers.1.mlp.up_proj.weight" in said


def test_a_layer_that_depends_on_its_place_is_refused(tmp_path):
    """Jamba's experts are in every second layer, whatever the config of a student says of it."""
    saved(tmp_path / "teacher", "jamba")
    said = refused(tmp_path, tmp_path / "teacher", tmp_path / "out", "--layers", "0,2")
    assert "layer 2 would be another one as layer 1" in said
    saved(tmp_path / "other", "gpt2", scale_attn_by_inverse_layer_idx=True)
    said = refused(tmp_path, tmp_path / "other", tmp_path / "out", "--layers", "0,2")
    assert "scale_attn_by_inverse_layer_idx" in said
