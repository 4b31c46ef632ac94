"""A teacher with another tokenizer: capture, then a real training on the store."""

import math

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from support.axolotl_run import BASE, run_axolotl
from support.cli import distill_here
from support.crossed import mistral_student, smollm2_teacher, write_chats
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from axolotl_distill.store import verify_store
from axolotl_distill.store.encoding import decode_logprobs, decode_tail

pytestmark = pytest.mark.axolotl

CHATS = [
    ("Say hello in French.", "Bonjour ! Ça va ? — naïve façade 🙂"),
    ("What is 350 + 1024?", "350 + 1024 = 1374."),
    ("Write a function.", "def add(a, b):\n    return a + b\n\n\nprint(add(12, 7))"),
    # Without 語, three tokens to this teacher: less likely than e^-32, the least of an entry.
    ("日本?", "日本の文章です。"),
]


@pytest.fixture(scope="module")
def other_dir(tmp_path_factory):
    return mistral_student(tmp_path_factory.mktemp("models") / "tiny-mistral")


@pytest.fixture(scope="module")
def teacher_dir(tiny_model, tmp_path_factory):
    return smollm2_teacher(tmp_path_factory.mktemp("models") / "teacher", tiny_model)


@pytest.fixture
def config(tmp_path, other_dir, teacher_dir):
    """Writes a YAML: the tiny SmolLM2-tokenized teacher, the SentencePiece student."""

    def write(rows=CHATS, cross=True, method="span", check=0, **capture):
        data = write_chats(tmp_path / "chats.jsonl", rows)
        values = {
            **BASE,
            "base_model": str(other_dir),
            "output_dir": str(tmp_path / "out"),
            "dataset_prepared_path": str(tmp_path / "prepared"),
            "distill": {
                **({"cross_tokenizer": {"method": method, "check": check}} if cross else {}),
                "capture": {
                    "teacher": str(teacher_dir),
                    "output": str(tmp_path / "store"),
                    "datasets": [{"path": str(data), "type": "chat_template"}],
                    **capture,
                },
            },
            "datasets": [{"path": str(tmp_path / "store"), "type": "axolotl_distill.store"}],
        }
        path = tmp_path / "config.yml"
        path.write_text(yaml.safe_dump(values))
        return path

    return write


def test_capture_and_train(tmp_path, config, teacher_dir, other_dir):
    """The records' own probabilities multiply to the teacher's probability of each answer, read
    with its own template; Axolotl trains on them."""
    path = config(k=16, check=20)
    told = distill_here("capture", path)
    store = verify_store(tmp_path / "store")
    about = store.manifest.teacher
    assert about["cross_tokenizer"] == "span" and about["tokenizer"] == str(teacher_dir)
    assert about["tokenizer_fingerprint"] != store.manifest.tokenizer["fingerprint"]
    shown = distill_here("inspect", tmp_path / "store", "--records", "0").stdout
    assert "cross_tokenizer" in shown and "the student's" in shown
    assert "cross_tokenizer: span" in distill_here("verify", tmp_path / "store").stdout

    # A few rows were looked at before all of them, and here these are all.
    records = store.read(np.arange(store.num_records))
    check = about["check"]
    assert "check: " in told.stdout and "least is carried at" in told.stdout
    assert check["rows"] == len(CHATS) and check["tokens"] == store.num_records
    tails = np.exp(decode_tail(records.tail[:, 0]))
    assert check["carried"] == pytest.approx(1.0 - tails.mean(), abs=1e-6)
    assert 0 < check["places"] <= 10 and check["samples"] == 20 and check["error"] < 0.15
    # A flat teacher: sixteen entries hold little of it.
    assert "WARNING: the records carry 0." in told.stderr
    card = (tmp_path / "store" / "README.md").read_text()
    assert "checked" in shown and "a few rows were checked" in card and "warning" in card

    model = AutoModelForCausalLM.from_pretrained(teacher_dir, dtype=torch.float64)
    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    ids, logprobs = decode_logprobs(records.entries, store.manifest.vocab_size)
    start = 0
    for row, (user, said) in zip(
        pq.read_table(store.path / "data").to_pylist(), CHATS, strict=True
    ):
        own = [token for token in row["labels"] if token != -100]
        total = 0.0
        for k, token in enumerate(own):
            (at,) = np.flatnonzero(ids[start + k] == token)
            total += float(logprobs[start + k][at])
        start += len(own)
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": user}], add_generation_prompt=True, tokenize=False
        )
        first = tokenizer(prompt, add_special_tokens=False)["input_ids"]
        answer = tokenizer(said, add_special_tokens=False)["input_ids"]
        row_ids = [*first, *answer, tokenizer.eos_token_id]
        with torch.no_grad():
            said_of = model(torch.tensor([row_ids])).logits[0].log_softmax(-1)
        expected = sum(
            said_of[at - 1, row_ids[at]].item() for at in range(len(first), len(row_ids))
        )
        # A code of an entry is 32 / 2^17 nats.
        assert total == pytest.approx(expected, abs=0.02), said
    assert start == store.num_records

    run = run_axolotl(tmp_path / "run", {
        "base_model": str(other_dir), "datasets": yaml.safe_load(path.read_text())["datasets"],
        "max_steps": 12, "learning_rate": 1e-2, "distill": {"alpha": 1.0},
    })  # fmt: skip
    losses = run.column("loss")
    # An epoch is two batches of unlike rows.
    assert all(map(math.isfinite, losses)), losses
    assert sum(losses[-2:]) < 0.8 * sum(losses[:2]), losses


def test_a_map_is_captured_and_warned_of(tmp_path, config):
    told = distill_here("capture", config(method="min_ed"))
    assert "`cross_tokenizer.method: min_ed` maps token to token" in told.stderr
    store = verify_store(tmp_path / "store")
    assert store.manifest.complete and store.manifest.teacher["cross_tokenizer"] == "min_ed"


def refused(path) -> str:
    done = distill_here("capture", path, check=False)
    assert done.returncode == 1
    return " ".join(done.stderr.split())


def test_what_is_refused(config, tmp_path, teacher_dir):
    """Without the block; a teacher without a tokenizer; a row that its template changes."""
    assert "set `distill.cross_tokenizer: {method: span}`" in refused(config(cross=False))
    bare = tmp_path / "bare"
    AutoConfig.from_pretrained(teacher_dir).save_pretrained(bare)
    said = refused(config(teacher=str(bare)))
    assert "tokenizer of the teacher" in said and "cannot be read" in said

    trims = tmp_path / "trims"
    tokenizer = AutoTokenizer.from_pretrained(teacher_dir)
    tokenizer.chat_template = (
        "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + (m['content'] | trim) + "
        "'<|im_end|>' + '\n' }}{% endfor %}"
    )
    tokenizer.save_pretrained(trims)
    AutoConfig.from_pretrained(teacher_dir).save_pretrained(trims)
    (trims / "model.safetensors").write_bytes(b"no weights are read")
    said = refused(config([*CHATS, ("Why?", "Because.   \n")], teacher=str(trims)))
    assert "Row 5 of the text to capture" in said and "its text is not the same" in said
