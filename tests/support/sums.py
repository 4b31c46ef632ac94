"""Small chats about sums, answers of one to three sentences, for students that write."""

import json
from pathlib import Path


def write_sums(path: Path, number: int = 24, *, longer: bool = False) -> Path:
    """`longer`: of each question one more repetition than of the one before, from none on."""
    with path.open("w") as file:
        for n in range(number):
            asked = f"What is {n} and {7 * n}?"
            question = {"role": "user", "content": f"{asked} " * n if longer else asked}
            answer = {"role": "assistant", "content": f"It is {8 * n}." * (1 + n % 3)}
            file.write(json.dumps({"messages": [question, answer]}) + "\n")
    return path
