"""`axolotl distill …`, in a process of its own or in this one."""

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml
from click.testing import CliRunner
from support.axolotl_run import BASE, environment, forks

from axolotl_distill.cli import distill as group

COMMAND = [sys.executable, "-m", "axolotl.cli.main", "distill"]
CHATS = Path(__file__).resolve().parents[2] / ".cache" / "pydoc-chat" / "heldout.jsonl"


def distill(*args: Any, check: bool = True) -> subprocess.CompletedProcess[str]:
    with tempfile.TemporaryDirectory() as place:
        out, err = Path(place, "out"), Path(place, "err")
        env = environment()
        code = forks().run(
            *("axolotl.cli.main", ["distill", *map(str, args)]),
            env=env, folder=Path.cwd(), out=out, err=err, seconds=600,
        )  # fmt: skip
        done = subprocess.CompletedProcess(args, code, out.read_text(), err.read_text())
    if check and code:
        raise AssertionError(done.stdout[-3000:] + done.stderr[-3000:])
    return done


def distill_here(*args: Any, check: bool = True) -> subprocess.CompletedProcess[str]:
    """The same without the many seconds that a new process takes to import Axolotl."""
    found = CliRunner().invoke(group, [str(arg) for arg in args])
    done = subprocess.CompletedProcess(args, found.exit_code, found.stdout, found.stderr)
    if found.exception is not None and not isinstance(found.exception, SystemExit):
        raise found.exception
    if check and done.returncode:
        raise AssertionError(done.stdout[-3000:] + done.stderr[-3000:])
    return done


def capture_config(folder: Path, student: Path, teacher: Any, **capture: Any) -> Path:
    """A YAML in `folder` that captures the held-out chats to FOLDER/store."""
    served = isinstance(teacher, dict) and "server" in teacher
    values = {
        **BASE,
        "base_model": str(student),
        "output_dir": str(folder / "out"),
        "dataset_prepared_path": str(folder / "prepared"),
        "sequence_len": 400,
        "distill": {
            "temperature": 2.0,
            "capture": {
                "teacher": teacher,
                "output": str(folder / "store"),
                "datasets": [{"path": str(CHATS), "type": "chat_template"}],
                **({} if served else {"batch_tokens": 1024}),
                **capture,
            },
        },
        "datasets": [{"path": str(folder / "store"), "type": "axolotl_distill.store"}],
    }
    path = folder / "config.yml"
    path.write_text(yaml.safe_dump(values))
    return path
