"""Prompts with answers that can be checked: arithmetic from reasoning-gym and word problems.

    python example_configs/r1-recipe/make_prompts.py OUT --train 400 --held-out 100 --digits 2

writes OUT/train.jsonl and OUT/heldout.jsonl, one {"prompt", "answer", "source"} a line. Always the
same rows for the same numbers; no problem is in both files.
"""

import argparse
import json
import random
from pathlib import Path

import reasoning_gym

NAMES = ("Ann", "Ben", "Cara", "Dan", "Eva", "Finn", "Gia", "Hugo")
THINGS = ("apples", "books", "cards", "coins", "eggs", "pens", "shells", "stamps")
STORIES = (
    ("{name} has {a} {thing} and gets {b} more. How many {thing} does {name} have now?", 1),
    ("{name} had {a} {thing} and gave {b} away. How many {thing} are left?", -1),
    ("There are {a} {thing} on the table and {b} in a box. How many {thing} are there in all?", 1),
)
SEED = 5


def arithmetic(count: int, digits: int) -> list[dict]:
    """Sums and differences of two numbers of up to `digits` digits."""
    tasks = reasoning_gym.create_dataset(
        "chain_sum",
        size=count,
        seed=SEED,
        min_terms=2,
        max_terms=2,
        min_digits=1,
        max_digits=digits,
    )
    return [
        {
            "prompt": f"What is {entry['metadata']['expression']}?",
            "answer": entry["answer"],
            "source": "chain_sum",
        }
        for entry in tasks
    ]


def word_problems(count: int, digits: int) -> list[dict]:
    """One step each, with numbers up to 10 a digit and no negative results."""
    rng = random.Random(SEED)
    rows = []
    for _ in range(count):
        story, sign = rng.choice(STORIES)
        low, high = sorted((rng.randint(1, 10 * digits), rng.randint(1, 10 * digits)))
        text = story.format(name=rng.choice(NAMES), thing=rng.choice(THINGS), a=high, b=low)
        rows.append({"prompt": text, "answer": str(high + sign * low), "source": "story"})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("out", type=Path)
    parser.add_argument("--train", type=int, default=400)
    parser.add_argument("--held-out", type=int, default=100)
    parser.add_argument("--digits", type=int, default=2, help="of the numbers")
    args = parser.parse_args()
    wanted = args.train + args.held_out
    found = arithmetic(2 * wanted, args.digits) + word_problems(2 * wanted, args.digits)
    rows = {row["prompt"]: row for row in found}
    prompts = list(rows.values())
    random.Random(SEED).shuffle(prompts)
    args.out.mkdir(parents=True, exist_ok=True)
    for name, part in (
        ("train", prompts[: args.train]),
        ("heldout", prompts[args.train : wanted]),
    ):
        path = args.out / f"{name}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in part))
        print(f"{path}: {len(part)} prompts")


if __name__ == "__main__":
    main()
