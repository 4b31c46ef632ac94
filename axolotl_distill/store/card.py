"""The README.md of a store: a dataset card that makes the folder a Hugging Face dataset."""

from typing import Any

from axolotl_distill.show import as_markdown
from axolotl_distill.store.check import check_lines, check_warnings
from axolotl_distill.store.manifest import Manifest


def dataset_card(manifest: Manifest) -> str:
    """Markdown. The front matter tells `datasets.load_dataset` that the rows are data/*.parquet.

    What came from elsewhere (names, terms) is shown and never obeyed: no markup, no secret.
    """
    # Seconds of imports, which a store's readers need not wait for.
    from huggingface_hub import DatasetCard, DatasetCardData

    rows = {"split": "train", "path": "data/*.parquet"}
    about = DatasetCardData(
        configs=[{"config_name": "default", "data_files": [rows]}],
        tags=["knowledge-distillation", "axolotl-distill"],
    )
    return str(DatasetCard(f"---\n{about.to_yaml()}\n---\n\n{_text(manifest)}"))


def _text(manifest: Manifest) -> str:
    holds = "; ".join(
        ", ".join(f"{key} {value}" for key, value in payload.model_dump().items())
        for payload in manifest.payloads.each
    )
    return f"""# Teacher store

What a teacher model thinks of every supervised token of a dataset, for knowledge distillation
with [axolotl-distill](https://pypi.org/project/axolotl-distill/).

| | |
|---|---|
| teacher | {as_markdown(manifest.teacher["name"])} |
| its weights | {as_markdown(manifest.teacher.get("weights", "not known"))} |
{_cross(manifest)}| rows | {manifest.num_rows} |
| records (supervised tokens) | {manifest.num_records} |
| a record holds | {as_markdown(holds)} |
| tail kept at T | {_temperatures(manifest) or "none: a record stands for all tokens"} |
| bytes a record | {manifest.bytes_a_record:.1f} |
| vocabulary | {manifest.vocab_size} |
| captured | {manifest.created} by {as_markdown(manifest.generator)} |

`data/` holds the rows, `teacher/` the records, `manifest.json` their hashes.

## Licence and terms

The licence of the text and the teacher's terms apply to this data.

{_terms(manifest.terms)}
"""


def _cross(manifest: Manifest) -> str:
    """Lines of the table, of a teacher with another tokenizer."""
    teacher = manifest.teacher
    if "cross_tokenizer" not in teacher:
        return ""
    lines = [
        ("its tokenizer", f"{teacher.get('tokenizer', '?')} (cross_tokenizer: "
                          f"{teacher['cross_tokenizer']})"),
    ]  # fmt: skip
    if "check" in teacher:
        lines.append(("a few rows were checked", "; ".join(check_lines(teacher["check"]))))
        lines += [("warning", said) for said in check_warnings(teacher["check"])]
    return "".join(f"| {name} | {as_markdown(value)} |\n" for name, value in lines)


def _temperatures(manifest: Manifest) -> str:
    return ", ".join(
        f"{served:g} (tail estimated)" if temperature in manifest.tail_estimated else f"{served:g}"
        for temperature, served in zip(manifest.temperatures, manifest.served, strict=True)
    )


def _terms(terms: dict[str, Any]) -> str:
    """One line a field that says something, in their order."""
    if not terms:
        return "The teacher's terms were not looked up."
    lines = []
    for name, value in terms.items():
        for part in value if isinstance(value, list) else [value]:
            if part:
                lines.append(f"- {as_markdown(name)}: {as_markdown(part)}")
    return "\n".join(lines)
