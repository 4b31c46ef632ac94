"""Where a model's thinking ends and its answer begins."""

OPEN, CLOSE = "<think>", "</think>"


def split_thinking(content: str, reasoning_content: str | None = None) -> tuple[str | None, str]:
    """(thinking or None, answer), both stripped.

    Thinking comes apart as `reasoning_content`, or inside `content` as <think>…</think>. Templates
    that open the thinking in the prompt leave only the closing tag; text cut off by the token
    limit only the opening one, and has no answer then.
    """
    if reasoning_content and reasoning_content.strip():
        return reasoning_content.strip(), content.strip()
    if CLOSE in content:
        before, _, after = content.partition(CLOSE)
        return before.partition(OPEN)[
            2
        ].strip() if OPEN in before else before.strip(), after.strip()
    if OPEN in content:
        return content.partition(OPEN)[2].strip(), ""
    return None, content.strip()


def join_thinking(thinking: str | None, answer: str) -> str:
    """Both in one text, in the layout of DeepSeek-R1 and Qwen3."""
    return answer if not thinking else f"{OPEN}\n{thinking}\n{CLOSE}\n\n{answer}"
