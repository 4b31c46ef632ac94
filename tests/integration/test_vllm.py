"""A real vLLM serves the teacher: its store is the one that the same model gives in this process,
and so are the scores of a reward model.

Installs vLLM into .cache/vllm (3.4 GB) where it is not there yet.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import openai
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from support.cli import CHATS, capture_config, distill
from support.crossed import mistral_student
from support.trajectories import trajectory
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from axolotl_distill.filter.step import Around
from axolotl_distill.filter.steps.reward import RewardArgs, RewardStep
from axolotl_distill.store import verify_store
from axolotl_distill.store.encoding import decode_logprobs, decode_tail

ROOT = Path(__file__).resolve().parents[2]
K, ROWS = 32, 8
# fp32 differs by the order of sums. In bf16 a logit of 16 to 32 has steps of 1/8 nat, and the
# hidden states before it are as coarse.
BOUNDS = {
    "float32": {"ids": 0.999, "logprob": 0.003, "tail": 0.001},
    "bfloat16": {"ids": 0.95, "logprob": 0.4, "tail": 0.04},
}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def vllm():
    spec = importlib.util.spec_from_file_location("demo_vllm", ROOT / "demo" / "serve_vllm.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.ensure_environment()
    return module


@pytest.fixture(scope="module")
def local(tmp_path_factory, smollm2_dir, student_dir):
    """What the model gives in this process, in fp32."""
    folder = tmp_path_factory.mktemp("local")
    teacher = {"model": str(smollm2_dir), "dtype": "float32"}
    distill("capture", capture_config(folder, student_dir, teacher, k=K), "--limit", ROWS)
    return verify_store(folder / "store")


@pytest.mark.parametrize("dtype", BOUNDS)
def test_same_store_as_in_this_process(tmp_path, vllm, smollm2_dir, student_dir, local, dtype):
    with vllm.serve(smollm2_dir, dtype=dtype) as base_url:
        teacher = {"model": "teacher", "server": {"base_url": base_url, "engine": "vllm"}}
        config = capture_config(tmp_path, student_dir, teacher, k=K)
        distill("capture", config, "--limit", ROWS)
        if dtype == "float32":
            refused(tmp_path, student_dir, teacher)
            imported(tmp_path, config, base_url)
    store = verify_store(tmp_path / "store")
    assert store.manifest.tail_estimated == [2.0, 4.0]
    assert store.num_rows == local.num_rows and store.num_records == local.num_records
    index = np.arange(store.num_records)
    seen, expected = store.read(index), local.read(index)
    (ids, logprobs), (true_ids, true_logprobs) = (
        decode_logprobs(found.entries, store.manifest.vocab_size) for found in (seen, expected)
    )
    assert (ids >= 0).all()
    shared = np.mean([len({*a} & {*b}) / K for a, b in zip(ids, true_ids, strict=True)])
    logprob = np.abs(logprobs[:, 0] - true_logprobs[:, 0])
    (tail, true_tail), (warm, true_warm) = (
        [np.exp(decode_tail(found.tail[:, column])) for found in (seen, expected)]
        for column in (0, 1)
    )
    print(
        f"\n{dtype}: {len(index)} records; {shared:.2%} of ids shared; likeliest logprob off by "
        f"{logprob.mean():.5f}, at most {logprob.max():.5f}; tail at T=1 by "
        f"{np.abs(tail - true_tail).mean():.5f}, at most {np.abs(tail - true_tail).max():.5f}; "
        f"estimated tail at T=2 by {np.abs(warm - true_warm).mean():.4f}"
    )
    assert shared > BOUNDS[dtype]["ids"]
    assert logprob.max() < BOUNDS[dtype]["logprob"]
    assert np.abs(tail - true_tail).max() < BOUNDS[dtype]["tail"]


def test_a_student_with_another_tokenizer(tmp_path, vllm, smollm2_dir):
    """Records of `span` from the server's 64 likeliest tokens, beside those of the same model in
    this process, which has all of them. What the tokens of an answer multiply to is the same."""
    student = mistral_student(tmp_path / "student")
    here, there = tmp_path / "here", tmp_path / "there"
    here.mkdir(), there.mkdir()

    def captured(folder, teacher):
        config = capture_config(folder, student, teacher, k=64)
        values = yaml.safe_load(config.read_text())
        values["distill"] |= {"temperature": 1.0, "cross_tokenizer": {"method": "span"}}
        config.write_text(yaml.safe_dump(values))
        distill("capture", config, "--limit", ROWS)

    captured(here, {"model": str(smollm2_dir), "dtype": "float32"})
    with vllm.serve(smollm2_dir, dtype="float32") as base_url:
        server = {"base_url": base_url, "engine": "vllm"}
        teacher = {"model": "teacher", "tokenizer": str(smollm2_dir), "server": server}
        captured(there, teacher)
    own, sums = [], []
    for folder in (there, here):
        store = verify_store(folder / "store")
        found = store.read(np.arange(store.num_records))
        ids, logprobs = decode_logprobs(found.entries, store.manifest.vocab_size)
        rows = pq.read_table(store.path / "data").to_pylist()
        labels = [[label for label in row["labels"] if label != -100] for row in rows]
        came = np.concatenate(labels)
        at = np.argmax(ids == came[:, None], 1)
        own.append(np.where((ids == came[:, None]).any(1), logprobs[np.arange(len(at)), at], -32.0))
        sums.append([part.sum() for part in np.split(own[-1], np.cumsum([*map(len, labels)])[:-1])])
    unnamed = verify_store(there / "store").manifest.teacher["check"]["unnamed"]
    off = np.abs(np.exp(own[0]) - np.exp(own[1]))
    print(
        f"\n{len(off)} records; of the teacher's probability {unnamed:.4f} not named; the token's "
        f"own probability off by {off.mean():.5f}, at most {off.max():.3f}; more than 0.01 at "
        f"{(off > 0.01).mean():.2%}"
    )
    assert 0.0 < unnamed < 0.1 and off.mean() < unnamed
    assert sums[0] == pytest.approx(sums[1], abs=0.05)


@pytest.mark.parametrize("outputs", [1, 3])
def test_reward_model_scores_as_in_this_process(tmp_path, vllm, smollm2_dir, outputs):
    folder = tmp_path / "reward"
    torch.manual_seed(outputs)
    model = AutoModelForSequenceClassification.from_pretrained(
        smollm2_dir, num_labels=outputs, dtype=torch.float32
    )
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(smollm2_dir).save_pretrained(folder)
    rows = [trajectory(n, content=f"It is {'so ' * n}{n}.") for n in range(12)]
    common = {"label": outputs - 1 if outputs > 1 else None}
    local = RewardStep(RewardArgs(model=str(folder), device="cpu", **common))
    expected = [verdict.score for verdict in local.judge(iter(rows))]
    with vllm.serve(folder, dtype="float32") as base_url:
        about = {"base_url": base_url, "engine": "vllm"}
        args = RewardArgs(model="teacher", tokenizer=str(folder), server=about, **common)
        served = RewardStep(args, Around(answers=tmp_path))
        seen = [verdict.score for verdict in served.judge(iter(rows))]
    assert max(expected) - min(expected) > 0.05
    assert seen == pytest.approx(expected, abs=1e-3)


def refused(folder, student, teacher):
    """What vLLM itself says no to, and a model that it does not serve."""
    for name, changes, about in (
        ("too-many", {"k": 65}, "--max-logprobs 65"),
        ("another", {"teacher": {**teacher, "model": "another"}}, "it serves teacher"),
    ):
        place = folder / name
        place.mkdir()
        given = {"teacher": teacher, **changes}
        done = distill("capture", capture_config(place, student, **given), check=False)
        assert done.returncode == 1 and about in done.stderr, done.stderr[-2000:]


def imported(folder, config, base_url):
    """Log-probabilities that come with a generation are those of the same text, captured."""
    question = json.loads(CHATS.read_text().splitlines()[0])["messages"][:1]
    rows, chats = [], []
    with openai.OpenAI(base_url=base_url, api_key="none") as client:
        for seed in (1, 2):
            answer = client.chat.completions.create(
                model="teacher",
                messages=question,
                max_tokens=60,
                temperature=0.7,
                seed=seed,
                logprobs=True,
                top_logprobs=8,
                extra_body={"return_tokens_as_token_ids": True},
            )
            rows.append({"messages": question, "response": answer.model_dump()})
            content = answer.choices[0].logprobs.content
            chats.append([int(entry.token.removeprefix("token_id:")) for entry in content])
    source = folder / "answers.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))
    done = distill("import", config, source, "--output", folder / "imported")
    print(done.stdout[-500:])
    assert "another length" not in done.stderr
    store = verify_store(folder / "imported")
    assert store.num_records == sum(map(len, chats))
    ids, logprobs = decode_logprobs(
        store.read(np.arange(store.num_records)).entries, store.manifest.vocab_size
    )
    assert (ids >= 0).sum(1).min() >= 7 and (logprobs[:, 0] <= 0).all()
