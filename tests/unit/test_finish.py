"""One meaning for the words that engines have for the end of an answer."""

import pytest

from axolotl_distill.trajectories.finish import ENDINGS, ending, is_unfinished

SEEN = {
    "finished": [
        *("stop", "eos", "eos_token", "end_turn", "STOP", "stop_sequence", "tool_calls"),
        *("tool_use", "function_call", "COMPLETE", "FinishReason.STOP", "FINISH_REASON_STOP"),
        *("endTurn", "stop-sequence", "end_id", "Completed", "stop_words"),
    ],
    "cut": ["length", "max_tokens", "MAX_TOKENS", "FinishReason.MAX_TOKENS", "model_length"],
    "withheld": ["content_filter", "SAFETY", "PROHIBITED_CONTENT", "guardrail_intervened"],
    "broken": ["abort", "error", "cancelled", "repetition"],
    "unknown": [None, "", "stopped_by_user", "FINISH_REASON_UNSPECIFIED", 3],
}


@pytest.mark.parametrize(
    ("meaning", "reason"), [(name, reason) for name, reasons in SEEN.items() for reason in reasons]
)
def test_what_a_word_means(meaning, reason):
    assert ending(reason) == meaning
    assert is_unfinished(reason) == (meaning in ("cut", "withheld", "broken"))


def test_no_word_has_two_meanings():
    words = [word for words in ENDINGS.values() for word in words.split()]
    assert len(words) == len(set(words))
