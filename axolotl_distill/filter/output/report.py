"""What a filter did, as the mapping that report.json holds, and as text tables."""

import json
from pathlib import Path
from typing import Any

from axolotl_distill.config.filter import CHOOSING, FilterArgs
from axolotl_distill.errors import TrajectoryError
from axolotl_distill.filter.pipeline import StepCount
from axolotl_distill.show import foreign, without_secrets

PARTIAL = (
    "If nearly right answers are worth learning from, give partial credit (`verify.min_score` "
    "below 1), or let a model grade them (`judge`)."
)
REMEDIES = {
    "rows": "They are in `rejected/`, with what is wrong with each.",
    "verify": f"Look at `rejected/`: is the reference right, and found in the answer? {PARTIAL}",
    "format": "Answers cut off need a larger `generate.max_tokens`; a form that the teacher does "
    "not keep has to be asked for in `generate.system`.",
    "thinking": "Does this teacher think, and does its server pass the thinking on?",
    "length": "See the details in `rejected/` for the lengths seen, and move the limits.",
    "language": "Lower `min_confidence`, allow the language seen, or look at `of: answer` only.",
    "deduplicate": "The teacher repeats itself: a higher `generate.temperature` or fewer "
    "completions a prompt; or raise `threshold`.",
    "judge": "A lower `min_score`, or no `min_score` and `best_of_n: {by: judge}`, keeps the best "
    "of what there is.",
    "reward": "A lower `min_score`, or no `min_score` and `best_of_n: {by: reward}`, keeps the "
    "best of what there is.",
}


def read_generation(source: Path) -> dict[str, Any]:
    """generation.json of a trajectories folder; {} where there is none."""
    file = (source if source.is_dir() else source.parent) / "generation.json"
    if not file.is_file():
        return {}
    try:
        found = json.loads(file.read_bytes())
        if not isinstance(found, dict) or not isinstance(found.get("terms") or {}, dict):
            raise ValueError("it is no object as `axolotl distill generate` writes it")
    except (ValueError, RecursionError) as error:
        raise TrajectoryError(
            f"{file} is damaged: {foreign(error)}. It says whose answers these are; take it from a "
            "copy, or move it away, and the dataset's card will say that nothing is known."
        ) from None
    return without_secrets(found)


def drop_warning(count: StepCount, max_drop: float) -> str | None:
    """What to say of a step that dropped more than `max_drop` of its rows, and of rows that were
    put aside before any step.

    Steps that choose (best_of_n, top) drop what they were asked to.
    """
    if count.kind == "rows":
        return (
            f"{count.dropped} of {count.rows} rows are put aside: {top_reasons(count)}. "
            f"{REMEDIES[count.kind]}"
        )
    if count.kind in CHOOSING or count.share <= max_drop:
        return None
    return (
        f"Step `{count.name}` dropped {count.dropped} of {count.rows} rows ({count.share:.0%}; "
        f"max_drop is {max_drop:.0%}): {top_reasons(count)}. {REMEDIES[count.kind]}"
    )


def top_reasons(count: StepCount, most: int = 3) -> str:
    """The reasons with the most rows, for people."""
    shown = [f"{rows} {reason}" for reason, rows in list(count.reasons.items())[:most]]
    rest = sum(list(count.reasons.values())[most:])
    return ", ".join([*shown, *([f"{rest} for other reasons"] if rest else [])])


def make_report(
    args: FilterArgs,
    source: Path,
    counts: list[StepCount],
    prompts: dict[str, int],
    written: dict[str, Any],
    warnings: list[str],
) -> dict[str, Any]:
    """report.json. `uid` names the kept rows: the same rows, the same uid."""
    steps = [{**count._asdict(), "dropped": count.dropped} for count in counts]
    return {
        "made_by": "axolotl-distill filter",
        "uid": written["uid"],
        "input": str(source),
        "rows": {"input": sum(written["rows"].values()), **written["rows"]},
        "prompts": prompts,
        "steps": steps,
        "tokens": written.get("tokens"),
        "warnings": warnings,
        "settings": without_secrets(args.model_dump(mode="json")),
        "generation": without_secrets(read_generation(source)),
    }


def step_table(report: dict[str, Any]) -> list[list[str]]:
    """Header and a line a step."""
    lines = [["step", "in", "kept", "dropped", "share", "reasons"]]
    for step in report["steps"]:
        keys = ("name", "kind", "rows", "kept", "reasons")
        count = StepCount(**{key: step[key] for key in keys})
        numbers = [str(count.rows), str(count.kept), str(count.dropped), f"{count.share:.1%}"]
        lines.append([count.name, *numbers, top_reasons(count)])
    return lines


def token_table(report: dict[str, Any]) -> list[list[str]]:
    """Header and a line for the whole, the prompt, the thinking and the answer."""
    keys = ("min", "p50", "p90", "p99", "max", "sum")
    lines = [["tokens", "rows", *keys]]
    for name, found in report["tokens"]["parts"].items():
        lines.append([name, str(found["rows"]), *(f"{found[key]:.0f}" for key in keys)])
    return lines
