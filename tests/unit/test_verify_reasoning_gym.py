"""reasoning-gym's own scorers, on its own questions as they come out of a file."""

import json

import pytest

from axolotl_distill.errors import FilterError
from axolotl_distill.filter.steps.verify import VerifyArgs, VerifyStep

reasoning_gym = pytest.importorskip("reasoning_gym")

DATASETS = [
    "chain_sum",
    "basic_arithmetic",
    "gsm_symbolic",
    "spell_backward",
    "arc_agi",
    "countdown",
]


@pytest.fixture(scope="module")
def step():
    step = VerifyStep(VerifyArgs(method="reasoning_gym", workers=1, timeout=30.0))
    yield step
    step.close()


@pytest.fixture(scope="module")
def entries():
    """As JSON leaves them."""
    made = [
        reasoning_gym.create_dataset(name, size=2, seed=3)[i] for name in DATASETS for i in (0, 1)
    ]
    return json.loads(json.dumps(made))


def row(answer, /, **meta):
    return {"content": f"<answer>{answer}</answer>", "reasoning_content": "hm", "meta": meta}


def test_right_answers_score_one_and_wrong_ones_less(step, entries):
    verdicts = list(step.judge(row(entry["answer"], **entry) for entry in entries))
    assert [v.score for v in verdicts] == [1.0] * len(entries)
    verdicts = list(step.judge(row("17 and a half", **entry) for entry in entries))
    assert not any(v.keep for v in verdicts)
    assert all(v.score < 1.0 for v in verdicts), verdicts


def test_a_number_may_end_a_sentence(step, entries):
    (entry,) = [one for one in entries if one["metadata"]["source_dataset"] == "basic_arithmetic"][
        :1
    ]
    rows = [row(f"{entry['answer']}{end}", **entry) for end in (".", "..", "0.")]
    assert [verdict.keep for verdict in step.judge(rows)] == [True, False, False]


def test_the_entry_in_one_column_or_as_json_text(entries):
    entry = entries[0]
    text = {**entry, "metadata": json.dumps(entry["metadata"])}
    step = VerifyStep(VerifyArgs(method="reasoning_gym", entry="task", workers=1, timeout=30.0))
    rows = [row(entry["answer"], task=column) for column in (entry, json.dumps(entry), text)]
    assert [verdict.keep for verdict in step.judge(rows)] == [True] * 3
    step.close()


def test_no_entry_no_scorer(step):
    with pytest.raises(FilterError, match=r"'metadata'.*has answer, source"):
        list(step.judge([row("1", answer="1", source="x")]))
    with pytest.raises(FilterError, match=r"verify\.dataset"):
        list(step.judge([row("1", answer="1", metadata={"seed": 1})]))


def test_an_answer_that_a_scorer_evaluates_can_touch_nothing(step, tmp_path):
    """Several scorers call `eval`, or sympy's, on the answer."""
    target = tmp_path / "target"
    for name in ("string_insertion", "spiral_matrix", "countdown", "polynomial_multiplication"):
        entry = json.loads(json.dumps(reasoning_gym.create_dataset(name, size=1, seed=1)[0]))
        for act in (f"__import__('os').mkdir({str(target)!r})", f"open({str(target)!r}, 'w')"):
            (verdict,) = step.judge([row(act, **entry)])
            assert not verdict.keep and not target.exists(), name
