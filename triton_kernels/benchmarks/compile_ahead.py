"""Compile the row kernel for sm_80 and sm_90 without a GPU: registers, shared memory, spills.

python triton_kernels/benchmarks/compile_ahead.py
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton
from distill_kernels import rows_triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

RESULTS = Path(__file__).parent / "results"
POINTERS = {
    "z_ptr": "*fp32",
    "ids_ptr": "*i64",
    "logp_ptr": "*fp32",
    "tail_ptr": "*fp32",
    "entropy_ptr": "*fp32",
    "label_ptr": "*i64",
    "top_ptr": "*i64",
    "aside_ptr": "*fp32",
    "out_ptr": "*fp32",
}
SCALARS = {"z_stride": "i32", "num_rows": "i32", "V": "i32", "K": "i32"}
FLOATS = {"temperature": "fp32", "alpha": "fp32"}


def compile_variant(arch: int, support: str, tempered: bool, with_grad: bool) -> dict[str, int]:
    """Registers a thread, bytes of shared memory and of spills, from ptxas."""
    constants = {
        "SUPPORT": rows_triton.SUPPORT_CODES[support],
        "TEMPERED": tempered,
        "HAS_ENTROPY": support == "sampled",
        "WITH_GRAD": with_grad,
        "BLOCK_V": rows_triton.BLOCK_V,
        "BLOCK_K": 64,
    }
    kernel = rows_triton._rows_kernel
    types = {**POINTERS, **SCALARS, **FLOATS, **dict.fromkeys(constants, "constexpr")}
    signature = {name: types[name] for name in kernel.arg_names}
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, name in enumerate(kernel.arg_names)
        if name in POINTERS or name in ("V", "z_stride")
    }
    source = ASTSource(
        kernel,
        signature,
        {(kernel.arg_names.index(k),): v for k, v in constants.items()},
        attributes,
    )
    compiled = triton.compile(
        source,
        target=GPUTarget("cuda", arch, 32),
        options={"num_warps": rows_triton.NUM_WARPS},
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
    }


def main() -> None:
    found = []
    for arch in (80, 90):
        for support in rows_triton.SUPPORT_CODES:
            for tempered in (False, True):
                numbers = compile_variant(arch, support, tempered, with_grad=True)
                found.append({"arch": f"sm_{arch}", "support": support, "tempered": tempered})
                found[-1] |= numbers
                print(found[-1])
                assert numbers["spill_bytes"] == 0 and numbers["shared_bytes"] <= 227 * 1024
    RESULTS.mkdir(exist_ok=True)
    about = {"triton": triton.__version__, "num_warps": rows_triton.NUM_WARPS, "results": found}
    (RESULTS / "compile_ahead.json").write_text(json.dumps(about, indent=1) + "\n")


if __name__ == "__main__":
    main()
