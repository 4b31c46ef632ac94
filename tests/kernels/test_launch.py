"""Where and how the kernels are launched: without Triton, ahead of time, over a whole run."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import get_args

import pytest
import torch
from distill_kernels import DistillSpec, LogitTransform, backends, fused_linear_distill
from distill_kernels.spec import Divergence, Support
from distill_kernels.task import Inputs, Task
from support.kernel_cases import make_case

ROOT = Path(__file__).resolve().parents[2]


def python(*command: str) -> str:
    """What it prints, with Triton's compiler in the place of its interpreter."""
    env = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    run = subprocess.run(
        [sys.executable, *command], env=env, capture_output=True, text=True, timeout=600
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@pytest.mark.needs_triton
def test_a_run_compiles_few_variants():
    """Rows and entries change with every batch: two variants, for few and for many entries."""
    assert python(str(ROOT / "tests/support/variants.py")).split() == ["1", "2"]


@pytest.mark.needs_triton
def test_compiles_for_a_gpu_that_is_not_there():
    """The compiler refuses what the interpreter lets pass. No spills; an odd vocabulary is read and
    written 16 bytes at a time. All variants: benchmarks/compile_ahead.py."""
    code = (
        "import sys, json; sys.path.insert(0, 'triton_kernels/benchmarks');"
        "import compile_ahead as c;"
        "assert 'maxnreg' not in c.launch_options(hip=True);"
        "some = [v for v in c.variants() if v[0]['divergence'] == 'jsd' and v[0]['transformed']"
        " and v[0]['teacher'] in ('tail_bucket', 'dense')];"
        "print(json.dumps([c.compile_kernel(k, a, 90) for _, k, a in some]))"
    )
    found = json.loads(python("-c", f"import os; os.chdir({str(ROOT)!r}); {code}"))
    assert len(found) == 2
    for numbers in found:
        assert numbers["spill_bytes"] == 0 and numbers["registers"] <= 128
        assert numbers["wide_loads"] >= 8 and numbers["wide_stores"] >= 1


def test_without_triton(monkeypatch):
    """As on a machine where it is not installed: it is missed only by who asks for it."""
    monkeypatch.setitem(sys.modules, "triton", None)
    case = make_case()
    args = (case.hidden, case.weight, case.teacher, case.labels)
    for backend in ("auto", "torch", "reference"):
        assert fused_linear_distill(*args, spec=DistillSpec(), backend=backend).loss.isfinite()
    with pytest.raises(ValueError, match=r"backend='triton'.*pip install.*backend='torch'"):
        fused_linear_distill(*args, spec=DistillSpec(), backend="triton")
    with pytest.warns(UserWarning, match="torch backend is used instead"):
        inputs = Inputs(SimpleNamespace(device=torch.device("cuda")), case.weight, None, None, None)
        task = Task(case.teacher, case.labels, DistillSpec(), LogitTransform(), "auto")
        assert backends.choose(inputs, task) == "torch"


def test_importing_needs_no_triton():
    code = "import sys; sys.modules['triton'] = None; import distill_kernels; print('ok')"
    assert python("-c", code) == "ok\n"


@pytest.mark.needs_triton
def test_kernels_know_every_word_of_the_spec():
    """Each once, and no other; a word that they do not know does not compile."""
    import triton.language as tl
    from distill_kernels.backends.triton_rows import names

    known = [x.value for x in vars(names).values() if isinstance(x, tl.constexpr)]
    words = [x for x in known if isinstance(x, str)]
    assert sorted(words) == sorted([*get_args(Divergence), *get_args(Support)])
    assert {name for name, x in vars(names).items() if getattr(x, "value", None) in words} == {
        word.upper() for word in words
    }
