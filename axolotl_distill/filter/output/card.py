"""The README.md of a filtered dataset: a dataset card, with where the rows come from."""

import json
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import DatasetCard, DatasetCardData

from axolotl_distill.filter.args import FilterArgs
from axolotl_distill.filter.output.report import Report, step_table, token_table
from axolotl_distill.filter.output.shards import SUFFIX
from axolotl_distill.show import as_markdown, fenced, without_secrets

HUB_LICENCES = {"apache-2.0", "mit", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "bsd-3-clause"}
OURS: dict[str, Any] = {
    "plugins": ["axolotl_distill"],
    "distill": {"teacher": "text"},
}
TYPES: dict[str, Any] = {
    "messages": "axolotl_distill.trajectories",
    "alpaca": "alpaca",
    "prompt_completion": {
        "field_instruction": "prompt",
        "field_output": "completion",
        "format": "{instruction}",
        "no_input_format": "{instruction}",
    },
}
NOTES = {
    "messages": "The type trains on thinking and answer, and refuses a chat template that would "
    "drop the thinking; `pip install axolotl-distill` brings it.",
    "alpaca": "`type: alpaca_w_system` reads the column `system` too.",
    "prompt_completion": "",
}


def dataset_card(report: Report, args: FilterArgs) -> DatasetCard:
    """The card, whose header tells `datasets.load_dataset` the splits.

    Where the files lie on this machine is nobody's business, and not in it.
    """
    settings = args.model_dump(mode="json", exclude_unset=True, exclude={"input", "output"})
    settings = _public(without_secrets(settings))
    generation = _public(report["generation"])
    terms = report["generation"].get("terms") or {}
    parts = [
        "# Distillation data\n\nWritten by a teacher model, then filtered, with "
        "[axolotl-distill](https://pypi.org/project/axolotl-distill/).",
        _markdown(
            [["", "rows", "prompts"]]
            + [
                [name, str(report["rows"][name]), str(report["prompts"].get(name, ""))]
                for name in ("train", "eval", "rejected")
            ]
        ),
        _usage(report, args),
        "## Teacher\n\n" + _settings(generation, skip=("terms", "format", "version")),
        "## Terms of the teacher\n\n" + _terms(terms),
        "## Filter\n\n" + _markdown(step_table(report)),
        "Settings:\n\n" + fenced(yaml.safe_dump(settings, sort_keys=False), "yaml"),
    ]
    if report["tokens"]:
        parts.append(_tokens(report))
    if report["warnings"]:
        parts.append(
            "## Warnings\n\n" + "\n".join(f"* {as_markdown(line)}" for line in report["warnings"])
        )
    header = _data(report, terms, args.file).to_yaml(line_break="\n")
    return DatasetCard("\n\n".join([f"---\n{header}\n---", *parts]) + "\n")


def _public(value: Any) -> Any:
    """Of paths on this machine the last name only."""
    if isinstance(value, dict):
        return {key: _public(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_public(item) for item in value]
    return Path(value).name if isinstance(value, str) and value.startswith(("/", "~")) else value


def _data(report: Report, terms: dict[str, Any], kind: str) -> DatasetCardData:
    files = [
        {"split": split, "path": f"data/{split}-{report['uid']}-*{SUFFIX[kind]}"}
        for split in ("train", "eval")
        if report["rows"][split]
    ]
    licence = str(terms.get("licence") or "").lower()
    known = licence in HUB_LICENCES
    return DatasetCardData(
        configs=[{"config_name": "default", "data_files": files}],
        license=(licence if known else "other") if licence else None,
        license_name=None if known or not licence else terms["licence"],
        tags=["knowledge-distillation", "synthetic", "axolotl-distill"],
    )


def _usage(report: Report, args: FilterArgs) -> str:
    entry = {
        "path": f"./{Path(args.output).name}",
        "type": TYPES[args.format],
        "split": "train",
        "revision": report["uid"],
    }
    config = dict(OURS) if args.format == "messages" else {}
    config["datasets"] = [entry]
    if report["rows"]["eval"]:
        config["test_datasets"] = [{**entry, "split": "eval"}]
    text = yaml.dump(config, Dumper=_Plain, sort_keys=False)
    notes = (
        f"`revision` changes with the rows, and Axolotl's cache goes by it. {NOTES[args.format]}"
    )
    return f"In an Axolotl config:\n\n{fenced(text, 'yaml')}\n\n{notes.strip()}"


class _Plain(yaml.SafeDumper):
    """Writes what is there twice twice, and not as an anchor."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _terms(terms: dict[str, Any]) -> str:
    if not terms:
        return "Not known: the trajectories came without a `generation.json`."
    lines = [
        [key, str(terms[key])]
        for key in ("family", "licence", "verdict", "source", "checked", "agreement")
        if terms.get(key)
    ]
    duties = "".join(f"\n* {as_markdown(duty)}" for duty in terms.get("duties") or ())
    return (
        _markdown([["", ""], *lines])
        + (f"\n\nDuties:\n{duties}" if duties else "")
        + "\n\nFacts for the user, not legal advice."
    )


def _settings(values: dict[str, Any], skip: tuple[str, ...]) -> str:
    if not values:
        return "Not known: the trajectories came without a `generation.json`."
    flat: list[list[str]] = []
    for key, value in values.items():
        if key in skip:
            continue
        inner = value.items() if isinstance(value, dict) else [(key, value)]
        flat += [
            [name, item if isinstance(item, str) else json.dumps(item, ensure_ascii=False)]
            for name, item in inner
        ]
    return _markdown([["", ""], *flat])


def _tokens(report: Report) -> str:
    tokens = report["tokens"] or {}
    past = ""
    if "past" in tokens:
        limit = tokens["sequence_len"]
        past = f"{tokens['past']:.1%} of the rows are longer than sequence_len {limit}.\n\n"
    return f"## Tokens\n\n{_markdown(token_table(report))}\n\n{past}![Token counts](tokens.png)"


def _markdown(lines: list[list[str]]) -> str:
    """A table of cells that hold any text, header first."""
    header, *rest = [[as_markdown(cell) for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in (header, ["---"] * len(header), *rest))
