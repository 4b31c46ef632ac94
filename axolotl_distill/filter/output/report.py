"""What a filter did, as the mapping that report.json holds, and as text tables."""

import json
from pathlib import Path
from typing import Any, TypedDict

from axolotl_distill.errors import TrajectoryError
from axolotl_distill.filter.args import FilterArgs
from axolotl_distill.filter.output.write import Written
from axolotl_distill.filter.pipeline import ROWS, StepCount
from axolotl_distill.filter.step import STEPS
from axolotl_distill.show import foreign, without_secrets


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

    Steps without a remedy drop what they were asked to.
    """
    if count.kind == ROWS:
        return (
            f"{count.dropped} of {count.rows} rows are put aside: {top_reasons(count)}. They are "
            "in `rejected/`, with what is wrong with each."
        )
    remedy = STEPS[count.kind].remedy
    if not remedy or count.share <= max_drop:
        return None
    return (
        f"Step `{count.name}` dropped {count.dropped} of {count.rows} rows ({count.share:.0%}; "
        f"max_drop is {max_drop:.0%}): {top_reasons(count)}. {remedy}"
    )


def top_reasons(count: StepCount, most: int = 3) -> str:
    """The reasons with the most rows, for people."""
    shown = [f"{rows} {reason}" for reason, rows in list(count.reasons.items())[:most]]
    rest = sum(list(count.reasons.values())[most:])
    return ", ".join([*shown, *([f"{rest} for other reasons"] if rest else [])])


class Report(TypedDict):
    """report.json. `uid` names the kept rows: the same rows, the same uid."""

    made_by: str
    uid: str
    input: str
    rows: dict[str, int]
    prompts: dict[str, int]
    steps: list[dict[str, Any]]
    tokens: dict[str, Any] | None
    warnings: list[str]
    settings: dict[str, Any]
    generation: dict[str, Any]


def make_report(
    args: FilterArgs,
    source: Path,
    generation: dict[str, Any],
    counts: list[StepCount],
    prompts: dict[str, int],
    written: Written,
    warnings: list[str],
) -> Report:
    return {
        "made_by": "axolotl-distill filter",
        "uid": written["uid"],
        "input": str(source),
        "rows": {"input": sum(written["rows"].values()), **written["rows"]},
        "prompts": prompts,
        "steps": [{**count._asdict(), "dropped": count.dropped} for count in counts],
        "tokens": written["tokens"],
        "warnings": warnings,
        "settings": without_secrets(args.model_dump(mode="json")),
        "generation": generation,
    }


def step_table(report: Report) -> list[list[str]]:
    """Header and a line a step."""
    lines = [["step", "in", "kept", "dropped", "share", "reasons"]]
    for step in report["steps"]:
        keys = ("name", "kind", "rows", "kept", "reasons")
        count = StepCount(**{key: step[key] for key in keys})
        numbers = [str(count.rows), str(count.kept), str(count.dropped), f"{count.share:.1%}"]
        lines.append([count.name, *numbers, top_reasons(count)])
    return lines


def token_table(report: Report) -> list[list[str]]:
    """Header and a line for the whole, the prompt, the thinking and the answer."""
    keys = ("min", "p50", "p90", "p99", "max", "sum")
    lines = [["tokens", "rows", *keys]]
    for name, found in (report["tokens"] or {"parts": {}})["parts"].items():
        lines.append([name, str(found["rows"]), *(f"{found[key]:.0f}" for key in keys)])
    return lines
