"""`axolotl distill filter`."""

from axolotl_distill.commands.recipe import Recipe
from axolotl_distill.commands.say import say, warn
from axolotl_distill.errors import ConfigError
from axolotl_distill.filter.executor import map_rows
from axolotl_distill.filter.output.report import Report, step_table, token_table
from axolotl_distill.filter.ray_executor import ray_rows
from axolotl_distill.filter.run import Filter
from axolotl_distill.generate.prompts import read_prompts
from axolotl_distill.trajectories.row import Row

TEXT_COLUMNS = ("step", "tokens", "reasons")


def run(recipe: Recipe, *, executor: str) -> Report:
    """Filter, then say what each step dropped and why, and how long the rows are.

    Returns the dataset's report.json, which --json prints.
    """
    assert recipe.filter is not None and recipe.rows is not None
    rows = ray_rows if executor == "ray" else map_rows
    report = Filter(
        recipe.filter, recipe.rows, executor=rows, warn=warn, metas=_metas(recipe)
    ).run()
    for line in summary(report, recipe.filter.output):
        say(line)
    return report


def _metas(recipe: Recipe) -> dict[str, Row]:
    """The columns of the prompts as they are now: an answer that was corrected counts at once."""
    args = recipe.generate
    if args is None or recipe.rows != args.output:
        return {}
    try:
        prompts = read_prompts(
            args.prompts, args.system, tools=args.extra.get("tools"), aside=lambda aside: None
        )
    except ConfigError as error:
        warn(
            "The prompts cannot be read again, so their columns (reference answers, tests) are "
            f"those that they had when they were asked. {error}"
        )
        return {}
    return {prompt.id: prompt.meta for prompt in prompts}


def summary(report: Report, output: str) -> list[str]:
    """Lines for the terminal."""
    rows, prompts, tokens = report["rows"], report["prompts"], report["tokens"]
    lines = ["", *_aligned(step_table(report)), ""]
    if tokens:
        lines += _aligned(token_table(report))
        if "past" in tokens:
            lines.append(f"{tokens['past']:.1%} are longer than {tokens['sequence_len']} tokens")
        lines.append("")
    else:
        lines += ["(no token counts: set `filter.tokenizer` to the student's)", ""]
    kept = rows["train"] + rows["eval"]
    lines.append(
        f"{output}: {kept} of {rows['input']} rows; train {rows['train']} rows of "
        f"{prompts['train']} prompts, eval {rows['eval']} rows of {prompts['eval']} prompts"
    )
    return lines


def _aligned(table: list[list[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    left = [name in TEXT_COLUMNS for name in table[0]]
    return [
        "  ".join(
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(line, widths, left, strict=True)
        ).rstrip()
        for line in table
    ]
