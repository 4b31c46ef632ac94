"""Folders of kept rollouts: `axolotl distill store rollouts`, and what inspect and verify say."""

from collections import Counter
from pathlib import Path
from typing import Any

from axolotl_distill.commands.kept import store_line
from axolotl_distill.commands.say import say
from axolotl_distill.errors import TrajectoryError
from axolotl_distill.filter.source import as_trajectory, read_source
from axolotl_distill.rollout.gather import gather, survey
from axolotl_distill.rollout.kept import is_rollouts, read_header
from axolotl_distill.store import verify_store
from axolotl_distill.trajectories.journal import refuse


def gathered(folder: str, output: str, only: str | None) -> dict[str, Any]:
    """A teacher store of the rollouts in `folder`; of those alone whose ids the dataset `only` has.

    Returns what --json prints. Raises TrajectoryError for a folder that is none, is damaged, or has
    none of the rows.
    """
    from transformers import AutoTokenizer

    path = Path(folder)
    _check(path)
    ids = None if only is None else _ids(only)
    name = read_header(path)["store"]["tokenizer"]["name"]
    tokenizer: Any = AutoTokenizer.from_pretrained(name)
    manifest = gather(path, Path(output), tokenizer.decode, ids)
    left = "" if ids is None else f" ({len(ids)} ids were asked for)"
    say(f"{output}: {store_line(manifest)}{left}")
    return {
        "output": output,
        "rows": manifest.num_rows,
        "records": manifest.num_records,
        "asked_for": None if ids is None else len(ids),
    }


def shown(folder: str) -> dict[str, Any]:
    """Reads every row and record of a folder; returns the numbers, which are said too.

    Raises TrajectoryError for what is not as it was written, StoreError for its store.
    """
    path = Path(folder)
    header = read_header(path)
    numbers: dict[str, Any] = {
        "student": header["settings"]["student"],
        "teacher": header["store"]["teacher"]["name"],
        "a record holds": [payload["kind"] for payload in header["store"]["payloads"]],
        **survey(path),
    }
    if (path / "store").is_dir():
        numbers["store"] = store_line(verify_store(path / "store").manifest)
    for name, value in numbers.items():
        say(f"{name:<28}{', '.join(value) if isinstance(value, list) else value}")
    return numbers


def _check(path: Path) -> None:
    if not is_rollouts(path):
        raise TrajectoryError(
            f"{path} is no folder of rollouts: it has no rollouts.json. Name the one of "
            "`distill.on_policy.keep`."
        )


def _ids(dataset: str) -> set[str]:
    occurrences: Counter[str] = Counter()
    found = (
        row["id"] if "id" in row else as_trajectory(row, occurrences)["id"]
        for _, row in read_source(dataset, refuse)
    )
    return {str(name) for name in found}
