"""`axolotl distill align`."""

from pathlib import Path
from typing import Any

import numpy as np

from axolotl_distill.align import Pair, Pieces
from axolotl_distill.align.methods import METHODS
from axolotl_distill.capture.oracle import Oracle, held, plain_row, survey_of
from axolotl_distill.capture.source import Row
from axolotl_distill.commands.say import say
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.errors import ConfigError
from axolotl_distill.store.check import fits_too_rarely
from axolotl_distill.store.counts import LEVEL, may_be_outside
from axolotl_distill.teachers.hf import HFTeacher
from axolotl_distill.teachers.tokenizer import other_tokenizer

# Prompts whose next token is a numeral: where next-token maps of vocabularies fail.
NUMERALS = (
    "Answer: ", "The answer is ", "350 + ", "1024 - 777 = ", "In the year ", "Page ", "x = ",
    "There were ", "12 + 7 = ", "Chapter ", "It costs $", "Room number ", "pi is about 3.",
    "The code is ", "born in 19", "Total: ", "room = ", "version 2.", "at 10:", "1, 2, 3, ",
)  # fmt: skip
ENGLISH = (
    "The lighthouse keeper climbed the stairs every evening, carrying a lamp and a small notebook "
    "in which he wrote down the ships that he had seen. In 1923 there were 47 of them in one "
    "night. Nobody knew why so many had come, and the newspapers of the town, which usually wrote "
    "about the price of fish, said nothing at all. He asked the harbour master, an old woman who "
    "remembered everything, but she only smiled and told him that the sea has its own calendar."
)
CODE = """\
def mean(values):
    total = 0.0
    for value in values:
        total += value
    if not values:
        raise ValueError("no values")
    return total / len(values)


class Counter:
    def __init__(self, start=0):
        self.count = start

    def add(self, n=1):
        self.count += n
        return self.count
"""
WORST = 8


def run(
    teacher: str, student: str, text: str | None, picture: str | None, *, samples: int
) -> dict[str, Any]:
    """Coverage of a text; of each method the mass that records would carry, held to an oracle.

    Returns what --json prints. Raises ConfigError for a text that cannot be read.
    """
    args = TeacherArgs.model_validate({"model": teacher})
    texts = {"English": ENGLISH, "code": CODE} if text is None else {text: _read(text)}
    pair = Pair(
        Pieces(other_tokenizer(args)),
        Pieces(other_tokenizer(TeacherArgs.model_validate({"model": student}))),
    )
    rows = {name: plain_row(content, pair) for name, content in texts.items()}
    survey = survey_of(list(rows.values()), pair)
    methods = {"span": None, **{name: build(pair) for name, build in METHODS.items()}}
    oracle = Oracle(HFTeacher(args, vocab_size=len(pair.teacher)), pair, survey, methods)
    masses = {
        method: {name: oracle.masses(row, method) for name, row in rows.items()}
        for method in methods
    }
    found = [oracle.compare(prompt, samples) for prompt in NUMERALS]
    by_method = {method: held(found, method) for method in methods}
    refused = fits_too_rarely(by_method["span"]["within"], len(found))
    carried = {
        method: {name: float(mass.mean()) for name, mass in each.items()}
        for method, each in masses.items()
    }
    report: dict[str, Any] = {
        "teacher": _side(teacher, pair.teacher),
        "student": _side(student, pair.student),
        "same_tokenizer": pair.same,
        "tokens_alike": sum(raw in pair.student.by_bytes for raw in pair.teacher.bytes_of if raw),
        "spans": {f"{a}:{b}": n for (a, b), n in survey.spans.most_common(WORST)},
        "methods": {name: {"mass_carried": carried[name], **by_method[name]} for name in methods},
        "worst_tokens": _worst(rows, masses["span"], pair),
        "oracle": found,
        "recommended": "text" if refused else "span",
    }
    _show(report)
    if picture is not None:
        _draw(report, picture)
    return report


def _side(name: str, pieces: Pieces) -> dict[str, Any]:
    return {"name": name, "fingerprint": pieces.fingerprint, "tokens": len(pieces)}


def _worst(rows: dict[str, Row], masses: dict[str, np.ndarray], pair: Pair) -> list[dict[str, Any]]:
    """The tokens before which most of the teacher's probability is in the tail, on average."""
    before: dict[int, list[float]] = {}
    for name, mass in masses.items():
        _, *tokens = rows[name]["input_ids"]
        for token, share in zip(tokens, mass.tolist(), strict=True):
            before.setdefault(token, []).append(share)
    worst = sorted(before, key=lambda token: float(np.mean(before[token])))[:WORST]
    return [
        {
            "token": pair.student.bytes_of[token].decode(errors="replace"),
            "mass": float(np.mean(before[token])),
            "occurrences": len(before[token]),
        }
        for token in worst
    ]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--text {path} cannot be read: {error}.") from error


def _show(report: dict[str, Any]) -> None:
    for side in ("teacher", "student"):
        about = report[side]
        say(f"{side:<24}{about['name']}, {about['tokens']:,} tokens, {about['fingerprint'][:12]}")
    say(f"{'tokens alike':<24}{report['tokens_alike']:,} of the teacher's, as bytes")
    spans = "  ".join(f"{size} {count}" for size, count in report["spans"].items())
    say(f"{'spans of the text':<24}{spans}   (teacher's tokens : student's)")
    say(
        f"{'least carried at':<24}"
        + "  ".join(f"{w['token']!r} {w['mass']:.2f}" for w in report["worst_tokens"])
    )
    say("")
    methods = report["methods"]
    head = "".join(f"{name:>14}" for name in methods)
    say(f"{'prompt':<18}{'token':<10}{'oracle':>8}{'± error':>9}{head}")
    for one in report["oracle"]:
        said = "".join(f"{one[name]:>14.3f}" for name in methods)
        say(
            f"{one['prompt']!r:<18}{one['token']!r:<10}{one['oracle']:>8.3f}{one['error']:>9.3f}"
            f"{said}"
        )
    say("")
    texts = [*methods["span"]["mass_carried"]]
    say(f"{'method':<16}{'mean error':>12}{'right':>8}   mass carried of {', '.join(texts)}")
    for name, about in methods.items():
        carried = "  ".join(f"{about['mass_carried'][text]:.3f}" for text in texts)
        say(f"{name:<16}{about['error']:>12.3f}{about['within']:>8.0%}   {carried}")
    places = len(report["oracle"])
    say(
        f"(right: what was counted fits the record, as it does a right one at {1 - LEVEL:.0%} of "
        f"places or more; of {places} numerals)"
    )
    if report["recommended"] == "span":
        say("recommended: distill.cross_tokenizer: {method: span}")
    else:
        say(
            "recommended: the teacher's text alone (distill.teacher: text), for span is wrong at "
            f"more than {may_be_outside(places)} of {places} prompts, which is hardly chance"
        )


def _draw(report: dict[str, Any], path: str) -> None:
    try:
        from matplotlib import pyplot
    except ImportError as error:
        raise ConfigError("--picture needs matplotlib: pip install matplotlib.") from error
    figure, axes = pyplot.subplots(figsize=(5, 5))
    found = report["oracle"]
    truth = np.array([one["oracle"] for one in found])
    noise = np.array([one["error"] for one in found])
    for name, marker in zip(report["methods"], "ox+1", strict=True):
        axes.errorbar(truth, [one[name] for one in found], xerr=2 * noise, fmt=marker, label=name)
    axes.plot([0, 1], [0, 1], color="grey", linewidth=0.5)
    axes.set(xlabel="oracle's probability of the token", ylabel="as recorded")
    axes.legend()
    figure.tight_layout()
    figure.savefig(path)
    pyplot.close(figure)
    say(f"picture: {path}")
