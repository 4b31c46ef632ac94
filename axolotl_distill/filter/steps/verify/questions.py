"""What a verifier is asked about a row: its final answer, the reference, and options."""

import contextlib
import json
from dataclasses import asdict
from typing import Any

from axolotl_distill.errors import FilterError
from axolotl_distill.filter.step import Verdict
from axolotl_distill.filter.steps.verify.args import VerifyArgs
from axolotl_distill.filter.verify import extract
from axolotl_distill.filter.verify.blocks import last_block
from axolotl_distill.filter.verify.tests import UnreadableTests, read_tests
from axolotl_distill.trajectories import parts_of
from axolotl_distill.trajectories.row import Row, Trajectory

Question = tuple[Any, Any, dict[str, Any]]
"""What a method's function takes."""


def question(args: VerifyArgs, row: Trajectory) -> Question | Verdict:
    """The question to ask, or the verdict on a row of which none can be asked.

    Raises FilterError for a row without a reference's column.
    """
    answer = parts_of(row).answer.strip()
    if not answer:
        return Verdict(False, "no answer")
    meta = row.get("meta") or {}
    if args.method == "code":
        return _code(args, answer, meta)
    if args.method == "reasoning_gym":
        return _task(args, answer, meta)
    return _text(args, answer, meta)


def _text(args: VerifyArgs, answer: str, meta: Row) -> Question | Verdict:
    options = args.model_dump(include={"tolerance", "absolute_tolerance", "ignore", "pattern"})
    if args.method == "regex" and "{answer}" not in (args.pattern or ""):
        references = []
    else:
        values = _columns(meta, args.columns)
        parts = [part for value in values for part in _as_list(value)]
        references = [
            reference
            for part in parts
            if part is not None
            for reference in extract.candidates(_as_text(part), args.answer_extract)[-1:]
        ]
        if not references or len(references) < len(parts):
            return Verdict(False, "no reference", detail=repr(values)[:200])
    found = extract.candidates(
        answer, args.extract or ("whole" if args.method == "regex" else "auto")
    )
    options["in_prose"] = False
    if args.method == "math" and args.extract in (None, "auto") and len(references) == 1:
        # math-verify knows more ways in which an answer is put in prose than `auto` does.
        marked = extract.candidates(answer, "tag:answer") or extract.boxed(answer)
        found, options["in_prose"] = marked or [answer], not marked
    if not found:
        return Verdict(False, "final answer not found", detail=answer[-200:])
    if args.method != "regex":
        found = extract.parts(found, len(references))
    return found, references, options


def _task(args: VerifyArgs, answer: str, meta: Row) -> Question | Verdict:
    """The whole entry as reasoning-gym made it, its objects perhaps as JSON text."""
    if args.entry:
        entry = _from_json(_columns(meta, [args.entry])[0])
    else:
        _columns(meta, ["answer", "metadata"])
        entry = {key: meta[key] for key in ("question", "answer", "metadata") if key in meta}
    if isinstance(entry, dict):
        entry = {**entry, "metadata": _from_json(entry.get("metadata"))}
    if not isinstance(entry, dict) or not isinstance(entry["metadata"], dict):
        return Verdict(False, "no reference", detail=f"no reasoning-gym entry: {entry!r}"[:200])
    dataset = args.dataset or entry["metadata"].get("source_dataset")
    if dataset is None:
        raise FilterError(
            "`verify.method: reasoning_gym` cannot tell whose scorer to use: the entry's "
            f"metadata has {', '.join(entry['metadata']) or 'nothing'}, and no "
            "`source_dataset`. Name it with `verify.dataset`."
        )
    found = extract.candidates(answer, args.extract or "auto")
    if not found:
        return Verdict(False, "final answer not found", detail=answer[-200:])
    return found, entry, {"dataset": dataset}


def _code(args: VerifyArgs, answer: str, meta: Row) -> Question | Verdict:
    (tests,) = _columns(meta, args.columns)
    function = None
    if args.entry_point:
        (function,) = _columns(meta, [args.entry_point])
    if not tests:
        return Verdict(False, "no reference")
    code = last_block(answer)
    if code is None:
        return Verdict(False, "final answer not found", detail="no fenced block of Python")
    try:
        cases = read_tests(tests, function)
    except UnreadableTests as error:
        return Verdict(False, "unreadable tests", detail=str(error))
    options = {
        "seconds": args.timeout,
        "memory_mb": args.memory_mb,
        "min_score": args.min_score,
    }
    return code, [asdict(case) for case in cases], options


def _columns(meta: Row, names: list[str]) -> list[Any]:
    """The values of a row's columns. Raises FilterError for one that the row does not have."""
    for name in names:
        if name not in meta:
            raise FilterError(
                f"`verify` reads the column {name!r} of the prompt's row, and this row has "
                f"{', '.join(sorted(meta)) or 'no columns'}. Name the column with the reference "
                "in `verify.answer` (reasoning_gym: `verify.entry`)."
            )
    return [meta[name] for name in names]


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _as_text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _from_json(value: Any) -> Any:
    if isinstance(value, str):
        with contextlib.suppress(ValueError):
            return json.loads(value)
    return value
