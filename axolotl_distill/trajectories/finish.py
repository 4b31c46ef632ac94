"""What a server means by `finish_reason`: every engine has words of its own for the same few ends.

Compared without case, punctuation and the prefixes of enumerations: `end_turn`, `endTurn` and
`END_TURN` are one, `FinishReason.STOP` is `stop`.
"""

import re
from typing import Literal

Ending = Literal["finished", "cut", "withheld", "broken", "unknown"]

ENDINGS: dict[Ending, str] = {
    # The model ended by itself, with an end-of-text token, a stop string or a call.
    "finished": """
        stop stop_sequence stop_sequences stop_token stop_tokens stop_token_id stop_word stop_words
        stop_id stop_str stop_string stopped eos eos_token eos_token_id eos_id end end_id end_turn
        end_of_turn end_of_text end_of_sequence end_of_message endoftext eot eot_id word complete
        completed finish finished done natural success
        tool_call tool_calls tool_use function_call function_calls""",
    "cut": """
        length max_length max_tokens max_new_tokens max_completion_tokens max_output_tokens
        model_length token_limit limit context_length context_length_exceeded
        model_context_window_exceeded incomplete pause_turn""",
    "withheld": """
        content_filter content_filtered safety recitation blocklist prohibited_content spii refusal
        guardrail guardrail_intervened error_toxic image_safety language""",
    "broken": """
        repetition repetition_detected abort aborted cancel cancelled canceled error
        internal_error timeout
        insufficient_system_resource""",
}


def _bare(reason: str) -> str:
    return re.sub(r"[^a-z0-9]", "", reason.casefold()).removeprefix("finishreason")


_MEANINGS: dict[str, Ending] = {
    _bare(name): ending for ending, names in ENDINGS.items() for name in names.split()
}


def ending(reason: str | None) -> Ending:
    """finished: by itself. cut: at a limit. withheld: by a filter. broken: the server gave up.

    "unknown" for null and for a word that is not in the table.
    """
    return _MEANINGS.get(_bare(reason), "unknown") if isinstance(reason, str) else "unknown"


def is_unfinished(reason: str | None) -> bool:
    """Whether the word says that the answer is not whole. Null and a word that nobody knows say no
    such thing: engines name the ordinary end in ever new ways."""
    return ending(reason) in ("cut", "withheld", "broken")
