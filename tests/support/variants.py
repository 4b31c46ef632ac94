"""How often Triton would compile the kernels in a run; a process of its own, for the interpreter
compiles nothing. Prints the variants after 300 random steps, of top-K and of nucleus records.

What decides is Triton's own binder, for a GPU that need not be there; nothing is launched.
"""

import random

import torch
from distill_kernels import DistillSpec, LogitTransform, SparseTeacher, sweep
from distill_kernels.backends.triton_rows import sparse
from distill_kernels.task import Inputs, Task
from triton.backends.compiler import GPUTarget
from triton.compiler.compiler import make_backend
from triton.runtime.jit import compute_cache_key, create_function_from_signature

VOCAB = 50_257


class Counter:
    def __init__(self, kernel):
        backend = make_backend(GPUTarget("cuda", 90, 32))
        self.bind = create_function_from_signature(kernel.signature, kernel.params, backend)
        self.keys = set()

    def __getitem__(self, grid):
        def launch(*args, **kwargs):
            _, specialization, options = self.bind(*args, **kwargs)
            self.keys.add(compute_cache_key({}, specialization, options))

        return launch


def step(rows: int, entries: int) -> None:
    """A step's sweep, in chunks and from a batch that begins at any address."""
    first = random.randrange(4)
    ids = torch.arange(entries).repeat(rows + first, 1)
    logprobs = torch.full(ids.shape, -8.0)
    labels = torch.zeros(rows + first, dtype=torch.int64)
    teacher = SparseTeacher(ids, logprobs, torch.zeros(rows + first))[first:]
    spec = DistillSpec(temperature=2, alpha=1, reduction="sum")
    task = Task(teacher, labels[first:], spec, LogitTransform(), "triton")
    inputs = Inputs(torch.randn(rows, 1), torch.randn(VOCAB, 1), None, None, None)
    sweep.sweep(inputs, task, torch.ones(rows), (True, False, False, False, False))


def main() -> None:
    real = sparse._sparse_kernel
    sweep.CHUNK_BYTES["cpu"] = 4 * VOCAB * 40
    random.seed(0)
    for entries in (lambda: 64, lambda: random.randint(1, 256)):
        sparse._sparse_kernel = counter = Counter(real)
        for _ in range(300):
            step(random.randint(1, 60), entries())
        print(len(counter.keys))


main()
