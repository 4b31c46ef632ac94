"""Compile the row kernels for sm_80 and sm_90 without a GPU: registers, shared memory, spills,
barriers, and how wide the vocabulary is read and written, for one that is not a multiple of 16.

python triton_kernels/benchmarks/compile_ahead.py
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any, get_args

import triton
from distill_kernels.backends.triton_rows import dense, sparse
from distill_kernels.backends.triton_rows.launch import BLOCK_V, launch_options
from distill_kernels.spec import Divergence, Support
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

RESULTS = Path(__file__).parent / "results"
INT64 = ("ids_ptr", "label_ptr", "top_ptr")
INT32 = ("z_stride", "t_stride", "grad_stride", "num_rows", "V", "width", "K")
DIVISIBLE = ("width", "z_stride", "t_stride", "grad_stride")
PER_LOGIT = ("z_ptr", "t_ptr", "grad_ptr", "bias_ptr")
MOST_SHARED = 227 * 1024


def compile_kernel(kernel: Any, constants: dict[str, Any], arch: int) -> dict[str, Any]:
    """Registers a thread, bytes of shared memory and of spills, from ptxas; from the PTX, the
    `bar.sync` in it, and instructions that load or store four or more words at once."""

    def type_of(name: str) -> str:
        if name in constants:
            return "constexpr"
        if name == "grad_ptr":
            return "*bf16"
        if name.endswith("_ptr"):
            return "*i64" if name in INT64 else "*fp32"
        return "i32" if name in INT32 else "fp32"

    names = kernel.arg_names
    source = ASTSource(
        kernel,
        {name: type_of(name) for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {
            (i,): [["tt.divisibility", 16]]
            for i, name in enumerate(names)
            if name in PER_LOGIT or name in DIVISIBLE
        },
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options=launch_options(hip=False),
    )
    with tempfile.NamedTemporaryFile("w", suffix=".ptx") as file:
        file.write(compiled.asm["ptx"])
        file.flush()
        suffix = "a" if arch >= 90 else ""
        command = [get_ptxas(arch).path, "-v", f"--gpu-name=sm_{arch}{suffix}", file.name]
        said = subprocess.run(
            [*command, "-o", "/dev/null"], capture_output=True, text=True, check=True
        ).stderr
    return {
        "registers": int(re.search(r"Used (\d+) registers", said)[1]),
        "shared_bytes": compiled.metadata.shared,
        "spill_bytes": sum(map(int, re.findall(r"(\d+) bytes spill", said))),
        "barriers": compiled.asm["ptx"].count("bar.sync"),
        "wide_loads": len(re.findall(r"ld\.global\S*\.v4", compiled.asm["ptx"])),
        "wide_stores": len(re.findall(r"st\.global\S*\.v4", compiled.asm["ptx"])),
    }


def variants() -> list[tuple[dict[str, Any], Any, dict[str, Any]]]:
    """(its name in the results, kernel, constants) of everything that is compiled."""
    found = []
    for divergence in get_args(Divergence):
        for tempered, transformed in ((False, False), (True, False), (True, True)):
            shared = {
                "DIVERGENCE": divergence,
                "TEMPERED": tempered,
                "SMOOTH": transformed,
                "HAS_BIAS": transformed,
                "SCALED": transformed,
                "CAPPED": transformed,
                "WITH_GRAD": True,
                "BLOCK_V": BLOCK_V,
            }
            about = {"divergence": divergence, "tempered": tempered, "transformed": transformed}
            for support in get_args(Support):
                sampled = support == "sampled"
                if sampled and divergence != "forward_kl":
                    continue
                constants = {"SUPPORT": support, "HAS_ENTROPY": sampled, "BLOCK_K": 64}
                found.append(
                    (
                        {"teacher": support, **about},
                        sparse._sparse_kernel,
                        {**shared, **constants},
                    )
                )
            found.append(({"teacher": "dense", **about}, dense._dense_kernel, shared))
    return found


def main() -> None:
    results = []
    for arch in (80, 90):
        for about, kernel, constants in variants():
            numbers = compile_kernel(kernel, constants, arch)
            results.append({"arch": f"sm_{arch}", **about, **numbers})
            print(results[-1])
            assert numbers["spill_bytes"] == 0 and numbers["shared_bytes"] <= MOST_SHARED
    RESULTS.mkdir(exist_ok=True)
    about = {"triton": triton.__version__, "launch": launch_options(hip=False), "results": results}
    (RESULTS / "compile_ahead.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
