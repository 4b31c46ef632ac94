"""The parts of `make demo-r1` that are no command of ours.

python demo/r1.py generate          asks SmolLM2, on a real vLLM where .cache/vllm is there
python demo/r1.py unfiltered        the recipe and the training config without verification
python demo/r1.py accuracy          solves the held-out problems with every model
python demo/r1.py report            the table
"""

import json
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import serve_vllm
import yaml

OUT = Path("outputs/r1")
CONFIGS = Path("example_configs/r1-recipe/cpu")
DISTILL = [str(Path(sys.executable).with_name("axolotl")), "distill"]
MODELS = {
    "teacher, shown two examples": None,
    "student before": ".cache/smollm2-cut5",
    "student after unfiltered": str(OUT / "unfiltered" / "student"),
    "student after filtered": str(OUT / "student"),
}


def load(name: str) -> dict:
    return yaml.safe_load((CONFIGS / name).read_text())


def save(values: dict, path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


def generate() -> None:
    recipe = load("recipe.yml")
    model = recipe["teacher"]["model"]
    has_vllm = serve_vllm.is_ready()
    served = "SmolLM2-135M-Instruct"
    arguments = ("--enable-prefix-caching",)
    server = (
        serve_vllm.serve(model, name=served, dtype="float32", arguments=arguments)
        if has_vllm
        else nullcontext()
    )
    with server as url:
        if has_vllm:
            about = {"base_url": url, "engine": "vllm", "concurrency": 16}
            recipe["teacher"] = {"model": served, "server": about}
            del recipe["generate"]["batch_size"]
        print("asking", url or model, flush=True)
        path = save(recipe, OUT / "recipe.yml")
        subprocess.run([*DISTILL, "generate", str(path)], check=True)


def unfiltered() -> None:
    """As many rows as were verified, whether right or wrong, and the same training on them."""
    recipe = load("recipe.yml")
    steps = recipe["filter"]["steps"]
    recipe["filter"]["steps"] = [step for step in steps if "verify" not in step]
    recipe["filter"]["output"] = str(OUT / "unfiltered" / "dataset")
    save(recipe, OUT / "unfiltered" / "recipe.yml")
    rows = json.loads((OUT / "dataset" / "report.json").read_text())["rows"]["train"]
    train = load("train.yml")
    capture = train["distill"]["capture"]
    capture["datasets"][0]["path"] = recipe["filter"]["output"]
    capture["datasets"][0]["split"] = f"train[:{rows}]"
    capture["output"] = train["datasets"][0]["path"] = str(OUT / "unfiltered" / "teacher-store")
    train["dataset_prepared_path"] = str(OUT / "unfiltered" / "prepared")
    train["output_dir"] = MODELS["student after unfiltered"]
    save(train, OUT / "unfiltered" / "train.yml")


def accuracy() -> None:
    """Every model once, its likeliest answer, on problems that nobody trained on."""
    found = {}
    for name, model in MODELS.items():
        recipe = load("recipe.yml")
        folder = OUT / "accuracy" / name.replace(" ", "-").replace(",", "")
        if model is not None:
            recipe["teacher"]["model"] = model
            del recipe["generate"]["examples"]
        recipe["generate"] |= {
            "prompts": [{"path": str(OUT / "heldout.jsonl"), "prompt": "prompt"}],
            "output": str(folder / "trajectories"),
            "n": 1,
            "temperature": 0.0,
        }
        verify = {"verify": {"method": "math", "answer": "answer"}}
        recipe["filter"] = {"output": str(folder / "graded"), "steps": [verify], "max_drop": 1.0}
        path = save(recipe, folder / "recipe.yml")
        subprocess.run([*DISTILL, "generate", str(path)], check=True)
        # It ends with an error when not one answer is right; the report is there all the same.
        subprocess.run([*DISTILL, "filter", str(path)], check=False)
        (step,) = json.loads((folder / "graded" / "report.json").read_text())["steps"]
        found[name] = {"problems": step["rows"], "right": step["kept"]}
    (OUT / "accuracy.json").write_text(json.dumps(found, indent=1) + "\n")


def report() -> None:
    found = json.loads((OUT / "accuracy.json").read_text())
    filtered = json.loads((OUT / "dataset" / "report.json").read_text())
    generated = filtered["rows"]["input"]
    lines = [f"{'held-out problems solved':<32}"]
    lines += [
        f"{name:<32}{row['right'] / row['problems']:>6.0%}   ({row['right']} of {row['problems']})"
        for name, row in found.items()
    ]
    kept = {step["name"]: step["kept"] for step in filtered["steps"]}
    lines.append(
        f"\n{generated} trajectories, {kept['verify']} verified, {filtered['rows']['train']} kept "
        "for training; both students saw as many rows for as many steps"
    )
    print("\n".join(lines))
    (OUT / "report.txt").write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    {f.__name__: f for f in (generate, unfiltered, accuracy, report)}[sys.argv[1]]()
