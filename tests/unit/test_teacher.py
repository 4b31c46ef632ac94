"""The local teacher gives the logits that were asked for, however its model makes them."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import CaptureError
from axolotl_distill.signal.signal import Want
from axolotl_distill.teachers.hf import HFTeacher


@pytest.mark.parametrize("keeps", [True, False])
def test_logits_of_chosen_positions(tiny_llama_dir, tokenizer, keeps, monkeypatch):
    monkeypatch.setattr("axolotl_distill.teachers.hf.LOGIT_BYTES", 4 * len(tokenizer) * 3)
    teacher = HFTeacher(
        TeacherArgs(model=str(tiny_llama_dir), dtype="float32"), vocab_size=len(tokenizer)
    )
    teacher._keeps = keeps
    rows = [torch.randint(5, 40_000, (n,)).tolist() for n in (9, 30, 17)]
    positions = [np.array([2, 3, 7]), np.arange(5, 29), np.array([15])]
    found = [[], [], []]
    for index, part, signal in teacher.grade(
        dict(enumerate(rows)), dict(enumerate(positions)), Want()
    ):
        logits = signal.distribution.logits
        assert logits.shape == (part.stop - part.start, len(tokenizer))
        assert logits.shape[0] <= 3 and logits.dtype == torch.float32
        found[index].append(logits)
    model = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    for row, wanted, seen in zip(rows, positions, found, strict=True):
        with torch.no_grad():
            alone = model(input_ids=torch.tensor([row])).logits[0][wanted]
        torch.testing.assert_close(torch.cat(seen), alone, rtol=1e-4, atol=1e-3)


def test_an_adapter_as_axolotl_leaves_it(tiny_llama_dir, tokenizer, tmp_path):
    """A folder with the base's config.json, an adapter and no weights is the base with it."""
    base = AutoModelForCausalLM.from_pretrained(tiny_llama_dir, dtype=torch.float32)
    lora = LoraConfig(
        r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"
    )
    tuned = get_peft_model(base, lora).eval()
    tuned.save_pretrained(tmp_path)
    base.config.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    row, wanted = list(range(20, 40)), np.arange(19)
    with torch.no_grad():
        expected = tuned(input_ids=torch.tensor([row])).logits[0][wanted]
        with tuned.disable_adapter():
            without = tuned(input_ids=torch.tensor([row])).logits[0][wanted]
    teacher = HFTeacher(
        TeacherArgs(model=str(tmp_path), dtype="float32"), vocab_size=len(tokenizer)
    )
    ((number, _, signal),) = teacher.grade({7: row}, {7: wanted}, Want())
    seen = signal.distribution.logits
    assert number == 7
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-3)
    assert (seen - without).abs().max() > 0.1


def test_a_teacher_without_the_vocabulary_is_refused(tiny_llama_dir, tokenizer):
    with pytest.raises(CaptureError, match="do not share a vocabulary"):
        HFTeacher(TeacherArgs(model=str(tiny_llama_dir)), vocab_size=len(tokenizer) + 1)


def test_a_teacher_that_is_not_there(tmp_path):
    with pytest.raises(CaptureError, match="nothing` cannot be loaded"):
        HFTeacher(TeacherArgs(model=str(tmp_path / "nothing")), vocab_size=10)
