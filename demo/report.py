"""The demo's table and plot, from what its steps left under outputs/demo.

python demo/report.py
"""

import ast
import json
import re
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from axolotl_distill.commands.inspect import statistics
from axolotl_distill.store import open_store

OUT = Path("outputs/demo")
ROWS = (
    ("student", "before training"),
    ("sft", "after SFT"),
    ("distilled", "after distillation"),
)


def curve(run: str) -> list[dict[str, float]]:
    """What the trainer printed, one entry an optimizer step."""
    text = (OUT / "logs" / f"{run}.log").read_text(errors="replace")
    entries = [ast.literal_eval(found) for found in re.findall(r"\{'loss': .*?\}", text)]
    return [{name: float(value) for name, value in entry.items()} for entry in entries]


def main() -> None:
    found = json.loads((OUT / "evaluation.json").read_text())
    store = statistics(open_store(OUT / "teacher-store"))
    distilled, sft = curve("distilled"), curve("sft")
    lines = [f"{'held-out rows':<22}{'KL to teacher':>15}{'top-1 agreement':>18}{'perplexity':>13}"]
    for key, name in ROWS:
        row = found[key]
        lines.append(
            f"{name:<22}{row['kl']:>10.3f} nats{row['top1_agreement']:>17.1%} "
            f"{row['perplexity']:>12.1f}"
        )
    lines.append(
        f"{'the teacher itself':<22}{'':>15}{'':>18}{found['teacher']['perplexity']:>13.1f}"
    )
    lines.append(
        f"\n{len(distilled)} optimizer steps each, the same rows; {found['student']['tokens']} "
        "held-out tokens, whole vocabulary, T=1"
    )
    lines.append(
        f"teacher store: {store['records']:,} tokens, {store['bytes a record']:.1f} bytes a token, "
        f"{store['entries a record']['mean']:.1f} entries each"
    )
    text = "\n".join(lines)
    print(text)
    (OUT / "report.txt").write_text(text + "\n")
    (OUT / "report.json").write_text(
        json.dumps({"evaluation": found, "store": store, "steps": len(distilled)}, indent=1) + "\n"
    )

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    left.plot([entry["distill/kl"] for entry in distilled])
    left.set(xlabel="step", ylabel="nats", title="distill/kl while training")
    right.plot([entry["ppl"] for entry in distilled], label="distillation")
    right.plot([entry["ppl"] for entry in sft], label="SFT")
    right.set(xlabel="step", yscale="log", title="perplexity on the training text")
    right.legend()
    figure.tight_layout()
    figure.savefig(OUT / "report.png", dpi=120)
    print(f"curves: {OUT / 'report.png'}")


if __name__ == "__main__":
    main()
