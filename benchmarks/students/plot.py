"""Gain against bytes: the picture of benchmarks/quality.py."""

from pathlib import Path

MARKS = "osD^vP*Xh<>p"


def draw(summary: list[dict], path: Path) -> None:
    """One panel a temperature: the share of full-vocabulary KD's gain over SFT against bytes a
    token, a mark a kind, a point a text and student, from the least to the most of its seeds."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    shown = [
        row
        for row in summary
        if row["share"] is not None and row["epochs"] == 1 and row["kind"] not in ("sft", "full")
    ]
    temperatures = sorted({row["temperature"] for row in shown})
    if not shown:
        return
    names = list(dict.fromkeys(row["kind"].split(":")[0] for row in shown))
    figure, axes = plt.subplots(
        1, len(temperatures), figsize=(6 * len(temperatures), 4.5), sharey=True, squeeze=False
    )
    for axis, temperature in zip(axes[0], temperatures, strict=True):
        for index, name in enumerate(names):
            points = [
                row
                for row in shown
                if row["temperature"] == temperature and row["kind"].split(":")[0] == name
            ]
            low = [row["share"] - row["share_least"] for row in points]
            high = [row["share_most"] - row["share"] for row in points]
            axis.errorbar(
                [row["bytes_a_token"] for row in points],
                [row["share"] for row in points],
                yerr=[low, high],
                fmt=MARKS[index % len(MARKS)],
                label=name.replace("_", " "),
                alpha=0.8,
            )
        axis.set_xscale("log")
        axis.set_ylim(min(0.2, *(row["share_least"] - 0.05 for row in shown)), 1.05)
        axis.axhline(1.0, color="grey", linewidth=0.8)
        axis.set_title(f"T = {temperature:g}")
        axis.set_xlabel("bytes a token")
        axis.grid(alpha=0.3)
    axes[0][0].set_ylabel("share of full-vocabulary KD's gain over SFT")
    axes[0][-1].legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    plt.close(figure)
