"""The steps that need neither a server nor a model."""

import math
import random
import time
from collections import Counter, defaultdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.trajectories import trajectory

from axolotl_distill.errors import ConfigError
from axolotl_distill.filter.step import Around
from axolotl_distill.filter.steps import format as format_step
from axolotl_distill.filter.steps.choose import BestOfNArgs, BestOfNStep, TopArgs, TopStep
from axolotl_distill.filter.steps.deduplicate import DeduplicateArgs, DeduplicateStep, shingles
from axolotl_distill.filter.steps.format import FormatArgs, FormatStep
from axolotl_distill.filter.steps.language import LanguageArgs, LanguageStep
from axolotl_distill.filter.steps.length import LengthArgs, LengthStep
from axolotl_distill.filter.steps.thinking import ThinkingArgs, ThinkingStep


def verdicts(step, *rows):
    found = list(step.judge(iter(rows)))
    assert len(found) == len(rows)
    return found


def verdict(step, **fields):
    return verdicts(step, trajectory(**fields))[0]


def test_format():
    step = FormatStep(FormatArgs(boxed=True))
    assert verdict(step).keep
    assert verdict(step, finish_reason="length").reason == "not finished: length"
    for reason in ("eos_token", "STOP", "tool_calls", "end_turn"):
        assert verdict(step, finish_reason=reason).keep, reason
    assert verdict(step, finish_reason=None).keep
    assert verdict(step, finish_reason="a word of tomorrow").keep
    assert verdict(step, finish_reason="repetition").reason == "not finished: repetition"
    assert verdict(step, content="<think>\nI wonder").reason == "no answer"
    assert verdict(step, content="<think>\\boxed{1}</think>It is 1").reason == "no \\boxed{…}"
    assert verdict(step, content="\\boxed{ }").reason == "no \\boxed{…}"
    matched = FormatStep(FormatArgs(match=r"(?m)^Answer: \d+$"))
    assert verdict(matched, content="So.\nAnswer: 12").keep
    assert verdict(matched, content="<think>\nAnswer: 12\n</think>\nNo.").reason.startswith(
        "does n"
    )
    lax = FormatStep(FormatArgs(finished=False, answer=False))
    assert verdict(lax, content="", finish_reason="length").keep


def test_thinking(tokenizer):
    step = ThinkingStep(ThinkingArgs(min_chars=5))
    assert verdict(step).keep
    assert verdict(step, content="It is 4.").reason == "no thinking"
    assert verdict(step, content="<think>\n\n</think>\n\n4").reason == "no thinking"
    assert verdict(step, content="<think>Hm.</think>4").reason == "thinking too short"
    assert verdict(step, content="<think>Hm, let me see").reason == "thinking not closed"
    assert verdict(step, content="4", reasoning_content="I know this.").keep
    counting = ThinkingStep(ThinkingArgs(min_tokens=4), Around(tokenizer=tokenizer.name_or_path))
    assert verdict(counting, content="4", reasoning_content="one two three four").keep
    short = verdict(counting, content="4", reasoning_content="one two three")
    assert (short.reason, short.detail) == ("thinking too short", "3 tokens")


def test_length(tokenizer):
    row = {"content": "<think>one two three</think>four five"}
    around = Around(tokenizer=tokenizer.name_or_path)
    assert verdict(LengthStep(LengthArgs(max_tokens=2, of="answer"), around), **row).keep
    long = verdict(LengthStep(LengthArgs(max_tokens=2, of="thinking"), around), **row)
    assert (long.reason, long.detail) == ("longer than 2 tokens", "3 tokens")
    assert verdict(LengthStep(LengthArgs(min_chars=14, of="thinking")), **row).reason == (
        "shorter than 14 characters"
    )
    assert verdict(LengthStep(LengthArgs(min_chars=23, max_chars=23)), **row).keep


def test_language():
    step = LanguageStep(LanguageArgs(allow=["en"]))
    english = "First we look at the number of apples that are left in the basket."
    german = "Zuerst sehen wir nach, wie viele Äpfel noch in dem Korb übrig sind."
    assert verdict(step, content=english).keep
    assert verdict(step, content=german).reason == "language de"
    assert verdict(step, content="\\boxed{4}").keep, "no language at all"
    formula = f"{english} $\\frac{{ab}}{{cd}}$ ```python\nfür = über + straße\n```"
    assert verdict(step, content=formula).keep
    both = LanguageStep(LanguageArgs(allow=["en", "de"], min_confidence=0.9))
    assert verdict(both, content=german).keep
    assert verdict(both, content="Radio Hotel Taxi Banana Gorilla Telefon Museum Internet").reason
    with pytest.raises(ConfigError, match="xx"):
        LanguageStep(LanguageArgs(allow=["en", "xx"]))


EN = "First we look at the train table and note every stop between the two towns. "
RU = "Сначала мы смотрим расписание и записываем каждую остановку между городами. "
ZH = "首先我们查看列车时刻表，记下两座城市之间的每一站，然后把分钟数加起来。"
DE = "Zuerst sehen wir nach, wie viele Äpfel noch in dem Korb übrig sind. "


@pytest.mark.parametrize(
    ("thinking", "answer", "reason"),
    [
        (EN * 5, EN, ""),
        (EN * 100, ZH * 2, "language zh"),
        (EN * 100, RU * 2, "language ru"),
        (EN * 100, DE * 2, "language de"),
        (ZH * 30, EN * 2, "language zh"),
        ((EN * 2 + ZH) * 20, EN, "language zh"),
        (EN * 40 + RU * 20 + EN * 40, EN, "language ru"),
        (EN * 40 + "The word 火车 means train. " + EN * 40, EN, ""),
        (EN * 5, "Ответ: сорок два", "another script"),
        (EN * 5, "答案是四十二。", "another script"),
        (EN * 5, "答案是 42", ""),  # three letters have no script
        (EN * 5, "Vierzig", ""),  # too short to tell
        (EN * 5, r"$\alpha = \beta$, α β γ δ ε", ""),
        (EN * 5, "```python\n" + "für = straße + über\n" * 30 + "```", ""),
        (EN * 5, EN + "```python\n" + "für = straße + über\n" * 30, ""),
        (EN * 5, EN + r"\[ \text{Zuerst sehen wir nach, wie viele es sind} \]", ""),
        (
            EN * 5,
            "Zuerst_sehen_wir nachWieViele `noch in dem Korb` https://übrig.de/sind/es " + EN,
            "",
        ),
    ],
)
def test_thinking_and_answer_are_each_in_a_language(thinking, answer, reason):
    step = LanguageStep(LanguageArgs(allow=["en"]))
    assert verdict(step, content=answer, reasoning_content=thinking).reason == reason


def test_a_chinese_answer_is_fine_where_chinese_is(caplog):
    step = LanguageStep(LanguageArgs(allow=["en", "zh"]))
    assert verdict(step, content=ZH, reasoning_content=EN * 5).keep
    assert verdict(step, content="答案是四十二。", reasoning_content=EN * 5).keep
    assert "1 of 1 rows were kept with thinking or an answer of fewer than 40" in caplog.text


def test_hostile_texts_take_no_time():
    step = LanguageStep(LanguageArgs())
    texts = ["\\[" * 100_000, "$" * 300_000, "a(" * 100_000, "a" * 500_000, "\\begin{" * 50_000]
    started = time.monotonic()
    for text in [
        *texts,
        "a_" * 200_000,
        "<a" * 200_000,
        "```" * 100_001,
        "aB" * 200_000,
        "`" * 300_001,
    ]:
        verdict(step, content=text)
    assert time.monotonic() - started < 20


def test_exact_duplicates():
    same = {"content": "It  is\n4."}
    rows = [
        trajectory(1, 0, content="It is 4."),
        trajectory(1, 1, **same),
        trajectory(2, 0, **same),
        trajectory(2, 1, content="It is 5."),
    ]
    found = verdicts(DeduplicateStep(DeduplicateArgs()), *rows)
    assert [v.keep for v in found] == [True, False, True, True]
    assert "p1-0" in found[1].detail
    found = verdicts(DeduplicateStep(DeduplicateArgs(within="dataset")), *rows)
    assert [v.keep for v in found] == [True, False, False, True]


def test_duplicate_prompts():
    """All rows of a prompt go, and only if another prompt said the same before."""
    text = [{"role": "user", "content": "How  many apples?"}]
    again = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "how many apples?"},
    ]
    rows = [
        trajectory(1, 0, messages=text),
        trajectory(2, 0, messages=again),
        trajectory(1, 1, messages=text),
        trajectory(2, 1, messages=again),
        trajectory(3, 0),
    ]
    found = verdicts(DeduplicateStep(DeduplicateArgs(of="prompt")), *rows)
    assert [v.keep for v in found] == [True, False, True, False, True]
    assert {v.reason for v in found} == {"", "duplicate prompt"}


def test_near_duplicates_against_jaccard():
    """Against all pairs: what is clearly above the threshold goes, what is clearly below stays."""
    random.seed(5)
    words = [f"w{i}" for i in range(4000)]
    texts = []
    for _ in range(60):
        text = random.choices(words, k=200)
        texts.append(text)
        for changes in (1, 2, 3, 8, 40):
            near = list(text)
            for place in random.sample(range(200), changes):
                near[place] = random.choice(words)
            texts.append(near)
    random.shuffle(texts)
    rows = [trajectory(0, i, content=" ".join(text)) for i, text in enumerate(texts)]
    sets = [shingles(row["content"]) for row in rows]
    found = verdicts(DeduplicateStep(DeduplicateArgs(method="near", threshold=0.8)), *rows)
    kept: list[int] = []
    wrong = seen = 0
    for i, each in enumerate(found):
        like = max((len(sets[i] & sets[j]) / len(sets[i] | sets[j]) for j in kept), default=0.0)
        if like > 0.9 or like < 0.7:
            seen += 1
            wrong += each.keep == (like > 0.9)
        if each.keep:
            kept.append(i)
    assert seen > 200 and wrong == 0
    assert 60 < len(kept) < 300


def test_near_duplicates_go_by_prompt_and_order_of_words():
    text = "We add the apples to the pears and then count what is in the basket by hand"
    other = " ".join(sorted(text.split()))
    rows = [
        trajectory(1, 0, content=text),
        trajectory(1, 1, content=text + "."),
        trajectory(1, 2, content=other),
        trajectory(2, 0, content=text),
    ]
    found = verdicts(DeduplicateStep(DeduplicateArgs(method="near")), *rows)
    assert [v.keep for v in found] == [True, False, True, True]
    found = verdicts(DeduplicateStep(DeduplicateArgs(method="near", within="dataset")), *rows)
    assert [v.keep for v in found] == [True, False, True, False]
    assert "like p1-0" in found[3].detail and found[3].reason == "near duplicate"


def test_near_duplicates_of_short_and_unspaced_texts():
    near = DeduplicateArgs(method="near")
    short = [trajectory(0, i, content=text) for i, text in enumerate(["4", "4", "2+2", "2-2", ""])]
    assert [v.keep for v in verdicts(DeduplicateStep(near), *short)] == [
        True,
        False,
        True,
        True,
        True,
    ]
    chinese = "我们先看看篮子里还剩下多少个苹果然后把它们全部加起来得到最后的答案是四十二个苹果"
    rows = [
        trajectory(0, i, content=t) for i, t in enumerate([chinese, chinese + "。", chinese[:9]])
    ]
    assert [v.keep for v in verdicts(DeduplicateStep(near), *rows)] == [True, False, True]


SCORES = st.lists(
    st.tuples(st.integers(0, 5), st.none() | st.floats(allow_nan=False, width=32)), max_size=40
)


def scored(pairs):
    return [
        trajectory(prompt, i, scores={} if score is None else {"reward": score})
        for i, (prompt, score) in enumerate(pairs)
    ]


@settings(max_examples=60, deadline=None)
@given(SCORES, st.integers(1, 4))
def test_best_of_n(pairs, keep):
    rows = scored(pairs)
    found = verdicts(BestOfNStep(BestOfNArgs(by="reward", keep=keep)), *rows)
    sizes = Counter(prompt for prompt, _ in pairs)
    kept, dropped = defaultdict(list), defaultdict(list)
    for (prompt, score), each in zip(pairs, found, strict=True):
        (kept if each.keep else dropped)[prompt].append(-math.inf if score is None else score)
    for prompt, size in sizes.items():
        assert len(kept[prompt]) == min(keep, size)
        assert min(kept[prompt]) >= max(dropped[prompt], default=-math.inf)


@settings(max_examples=60, deadline=None)
@given(SCORES, st.floats(0.01, 1.0))
def test_top(pairs, share):
    found = verdicts(TopStep(TopArgs(by="reward", share=share)), *scored(pairs))
    values = [-math.inf if score is None else score for _, score in pairs]
    kept = [value for value, each in zip(values, found, strict=True) if each.keep]
    dropped = [value for value, each in zip(values, found, strict=True) if not each.keep]
    assert abs(len(kept) - share * len(pairs)) < 1 or len(kept) == math.ceil(share * len(pairs))
    assert min(kept, default=0) >= max(dropped, default=-math.inf)


def test_top_share_is_exact():
    rows = scored([(i, float(i)) for i in range(10)])
    for share, count in ((0.1, 1), (0.3, 3), (0.7, 7), (0.25, 3), (1.0, 10)):
        kept = [v.keep for v in verdicts(TopStep(TopArgs(by="reward", share=share)), *rows)]
        assert sum(kept) == count and all(kept[10 - count :])


def test_a_pattern_that_backtracks_for_ever(monkeypatch):
    monkeypatch.setattr(format_step, "MATCH_SECONDS", 0.5)
    step = FormatStep(FormatArgs(match=r"(a+)+$"))
    found = verdicts(step, trajectory(content="a" * 60 + "b"), trajectory(content="aa"))
    step.close()
    assert (found[0].reason, found[1].keep) == ("match timed out", True)
