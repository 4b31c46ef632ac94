"""Time, memory and gradient error of the fused loss, side by side with its peers in one run.

    python triton_kernels/benchmarks/sweep.py            sizes that fit the device
    python triton_kernels/benchmarks/sweep.py --quick    one size, every loss

`make benchmark-kernels` installs the peers that Axolotl does not bring, and runs this. For each
loss and shape:

    floor        the matrix products alone, measured in the same run: hidden @ W.T and dz @ W, and
                 dz.T @ hidden where the head is trained; the same two of them again, or one, for a
                 dense teacher's logits
    ratio        median time of forward and backward over the floor
    peak MB      beyond inputs and gradients, as torch's allocator counts it
    grad error   of d loss / d hidden on 64 rows, relative, against float64
"""

import argparse
import gc
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from distill_kernels import DenseLogits, DistillSpec, SparseTeacher, distill_loss
from torch.profiler import ProfilerActivity, profile

ROOT = Path(__file__).resolve().parents[2]
RESULTS = Path(__file__).parent / "results"
sys.path.insert(0, str(ROOT / ".cache/peers"))
sys.path.insert(0, str(ROOT / "benchmarks"))

from common import device_name, keep  # noqa: E402
from contenders import BETA, CONTENDERS, SPECS, Case, Unavailable  # noqa: E402

TEMPERATURES = {"topk_kl": 1.0, "dense_jsd": 1.0}
CHECKED_ROWS = 64
VOCABULARIES = [32_000, 49_152, 128_256, 151_936, 262_144]


def make_case(
    task: str, rows: int, dim: int, vocab: int, k: int, trained: bool, device: str
) -> Case:
    """Random hidden states whose logits have a spread of about 3, as those of a trained model."""
    torch.manual_seed(0)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32

    def random(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, device=device) * scale).to(dtype)

    temperature = TEMPERATURES.get(task, 2.0)
    teacher_hidden, teacher_weight = random(rows, dim), random(vocab, dim, scale=3 / dim**0.5)
    ids, logprobs, tail = [], [], []
    for part in teacher_hidden.split(256):
        full = ((part @ teacher_weight.t()).float() / temperature).log_softmax(-1)
        top = full.topk(k)
        ids.append(top.indices)
        rest = full.scatter(1, top.indices, -torch.inf).logsumexp(-1)
        if task == "topk_kl":
            logprobs.append(top.values.log_softmax(-1))
            tail.append(torch.full_like(rest, -torch.inf))
        else:
            logprobs.append(top.values)
            tail.append(rest)
    return Case(
        hidden=random(rows, dim).requires_grad_(),
        weight=random(vocab, dim, scale=3 / dim**0.5).requires_grad_(trained),
        labels=torch.randint(0, vocab, (rows,), device=device),
        teacher_hidden=teacher_hidden,
        teacher_weight=teacher_weight,
        sparse=SparseTeacher(torch.cat(ids), torch.cat(logprobs), torch.cat(tail)),
        temperature=temperature,
        task=task,
    )


def floor(case: Case) -> Callable[[], None]:
    """The products alone, in row chunks through buffers made beforehand."""
    rows, vocab = min(1024, case.hidden.shape[0]), case.weight.shape[0]
    hidden, weight = case.hidden.detach(), case.weight.detach()
    logits = torch.empty(rows, vocab, dtype=hidden.dtype, device=hidden.device)
    grad_hidden = torch.empty_like(hidden[:rows])
    grad_weight = torch.empty_like(weight)

    def run() -> None:
        for part in hidden.split(rows):
            n = part.shape[0]
            torch.mm(part, weight.t(), out=logits[:n])
            torch.mm(logits[:n], weight, out=grad_hidden[:n])
            if case.weight.requires_grad:
                torch.mm(logits[:n].t(), part, out=grad_weight)
            if case.task.startswith("dense"):
                torch.mm(part, case.teacher_weight.t(), out=logits[:n])

    return run


def exact_gradient(case: Case) -> torch.Tensor:
    """d loss / d hidden of the first rows, float64, from the formula on whole logits."""
    hidden = case.hidden.detach()[:CHECKED_ROWS].double().requires_grad_()
    logits = hidden @ case.weight.detach().double().t()
    spec = DistillSpec(temperature=case.temperature, reduction="sum", **SPECS[case.task])
    teacher = case.sparse[slice(CHECKED_ROWS)]
    if case.task.startswith("dense"):
        rows = case.teacher_hidden[:CHECKED_ROWS].double()
        teacher = DenseLogits(rows @ case.teacher_weight.double().t())
    loss = distill_loss(logits, teacher, case.labels[:CHECKED_ROWS], spec=spec).loss
    scale = BETA * (1 - BETA) if case.task == "dense_jsd" else 1.0
    (loss * scale / case.hidden.shape[0]).backward()
    return hidden.grad


def peak_bytes(run: Callable[[], None], device: str) -> int:
    """Bytes of tensors that a call holds at its peak, beyond what is there before it."""
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    held = peak = 0
    for event in profiler.profiler.kineto_results.events():
        if event.name() == "[memory]":
            held += event.nbytes()
            peak = max(peak, held)
    return peak


def measure(case: Case, device: str, repeats: int) -> list[dict]:
    def once(contender: Callable[[Case], None]) -> None:
        case.hidden.grad = case.weight.grad = None
        contender(case)

    exact = exact_gradient(case)
    found: dict[str, dict] = {}
    for name, contender in CONTENDERS.items():
        try:
            once(contender)
            case.hidden.grad = case.weight.grad = None
            size = peak_bytes(lambda c=contender: c(case), device)
        except Unavailable as reason:
            if str(reason) != "has another loss":
                found[name] = {"unavailable": str(reason)}
            continue
        except ImportError as error:
            found[name] = {"unavailable": str(error)}
            continue
        except Exception as error:  # a peer may fail in any way; the others still count
            found[name] = {"failed": f"{type(error).__name__}: {error}"[:300]}
            continue
        grads = [case.hidden.grad] + [case.weight.grad] * case.weight.requires_grad
        size -= sum(g.numel() * g.element_size() for g in grads)
        error = (case.hidden.grad[:CHECKED_ROWS].double() - exact).norm() / exact.norm()
        found[name] = {"peak_bytes": max(0, size), "gradient_error": error.item()}
    running = {name: CONTENDERS[name] for name, row in found.items() if "peak_bytes" in row}
    baseline = floor(case)
    times: dict[str, list[float]] = {name: [] for name in ("floor", *running)}
    for _ in range(repeats):
        for name in times:
            if device == "cuda":
                torch.cuda.synchronize()
            start = time.perf_counter()
            baseline() if name == "floor" else once(running[name])
            if device == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - start)
    medians = {name: statistics.median(taken) for name, taken in times.items()}
    for name in running:
        found[name] |= {"seconds": medians[name], "over_floor": medians[name] / medians["floor"]}
    return [
        {"contender": "floor", "seconds": medians["floor"]},
        *({"contender": name, **row} for name, row in found.items()),
    ]


def shapes(device: str, quick: bool) -> list[dict]:
    if device == "cuda":
        size = dict(rows=8192, dim=4096, k=64)
    else:
        size = dict(rows=256, dim=1024, k=64)
    chosen = [151_936 if device == "cuda" else 49_152] if quick else VOCABULARIES
    plans = [
        dict(task=task, vocab=vocab, trained=trained, **size)
        for vocab in chosen
        for task, trained in (
            ("topk_kl", True),
            ("topk_kl", False),
            ("tail_kl", False),
            ("tail_reverse_kl", False),
            ("dense_kl", True),
            ("dense_jsd", False),
            ("ce", True),
        )
    ]
    if quick:
        return plans
    base = dict(task="tail_kl", vocab=49_152, trained=False)
    for change in ({"rows": size["rows"] // 4}, {"dim": size["dim"] // 4}, {"k": 8}, {"k": 256}):
        plans.append({**base, **size, **change})
    return plans


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    results = []
    for plan in shapes(device, options.quick):
        case = make_case(**plan, device=device)
        rows = measure(case, device, options.repeats)
        results.append({**plan, "dtype": str(case.hidden.dtype), "contenders": rows})
        print(", ".join(f"{key}={value}" for key, value in plan.items()), flush=True)
        for row in rows:
            print("   " + _line(row), flush=True)
    kind = "h100" if "H100" in device_name() else device
    path = keep(f"sweep_{kind}{'_quick' if options.quick else ''}", results, RESULTS)
    plot(results, device_name(), path.with_suffix(".png"))


def plot(results: list[dict], device: str, path: Path) -> None:
    """Time over the floor against V, a panel for each loss."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    panels = list(dict.fromkeys((result["task"], result["trained"]) for result in results))
    usual = {key: results[0][key] for key in ("rows", "dim", "k")}
    figure, axes = plt.subplots(2, 4, figsize=(16, 7), sharey=True)
    for axis, (task, trained) in zip(axes.flat, panels, strict=False):
        points: dict[str, list[tuple[int, float]]] = {}
        for result in results:
            if (result["task"], result["trained"]) != (task, trained):
                continue
            if {key: result[key] for key in usual} != usual:
                continue
            for row in result["contenders"]:
                if "over_floor" in row:
                    points.setdefault(row["contender"], []).append(
                        (result["vocab"] / 1000, row["over_floor"])
                    )
        for name, found in points.items():
            axis.plot(*zip(*sorted(found), strict=True), marker="o", label=name)
        axis.set_title(f"{task}, head {'trained' if trained else 'frozen'}")
        axis.set_xlabel("vocabulary, thousands")
        axis.axhline(1.0, color="grey", linewidth=0.8)
        axis.legend(fontsize=7)
    for axis in axes.flat[len(panels) :]:
        axis.remove()
    axes[0, 0].set_ylabel("time over the matrix products")
    figure.suptitle(f"{device}; {', '.join(f'{key} {value}' for key, value in usual.items())}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def _line(row: dict) -> str:
    name = f"{row['contender']:<19}"
    if "unavailable" in row or "failed" in row:
        return name + row.get("unavailable", row.get("failed", ""))
    text = f"{name}{row['seconds'] * 1e3:>9.1f} ms"
    if "over_floor" not in row:
        return text
    return (
        f"{text}{row['over_floor']:>7.2f} x floor{row['peak_bytes'] / 1e6:>9.0f} MB"
        f"{row['gradient_error']:>11.1e}"
    )


if __name__ == "__main__":
    main()
