"""The folder of a generation: its settings, its lock, and what is there already.

generation.json    uid, settings that must stay, and what may grow: prompts, n, terms
part-*.jsonl       trajectories
failed/*.jsonl     what the teacher refused in the last run, with its reason
"""

import fcntl
import json
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from axolotl_distill.errors import GenerateError
from axolotl_distill.generate.tally import Tally
from axolotl_distill.recipe import Recipe
from axolotl_distill.store.files import write_atomically
from axolotl_distill.teachers.fingerprint import weights_of
from axolotl_distill.trajectories import Journal, read_trajectories

FILE = "generation.json"
FORMAT = "axolotl-distill generation"
VERSION = 1


def settings_of(recipe: Recipe) -> dict[str, Any]:
    """What decides how a completion reads. Where a server is, how many prompts, budgets are not.
    Which weights a server has it does not tell."""
    keys = ("temperature", "top_p", "max_tokens", "system", "examples", "seed", "logprobs", "extra")
    chosen = recipe.generate.model_dump(mode="json")
    teacher = {"name": recipe.teacher.name, "type": recipe.teacher.type}
    if recipe.teacher.type == "model":
        teacher["dtype"] = recipe.teacher.dtype
        teacher["weights"] = weights_of(recipe.teacher.name)
    return {"teacher": teacher, **{key: chosen[key] for key in keys}}


class GenerationFolder:
    """A context: locked while it is open.

    uid      names this generation
    done     ids of all rows there when it was opened
    earlier  counts over them
    """

    def __init__(self, path: Path, uid: str, lock: Any):
        self.path = path
        self.uid = uid
        self._lock = lock
        self.done: set[str] = set()
        self.earlier = Tally()
        if any(path.glob("*.jsonl")):
            for row in read_trajectories(path):
                self.done.add(row["id"])
                self.earlier.add(row)

    @classmethod
    def open(cls, path: str | Path, settings: dict[str, Any], about: dict[str, Any]) -> Self:
        """Begin a folder, or go on with one made with the same settings.

        `about` is kept beside them and may differ from run to run. Raises GenerateError when
        another process is at work, when the folder holds something else, or when a setting
        differs from what the rows that are there were generated with.
        """
        path = Path(path)
        _refuse_strangers(path)
        path.mkdir(parents=True, exist_ok=True)
        lock = (path / ".lock").open("w")
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            header = _header(path, settings)
            text = json.dumps({**header, **about}, indent=1, ensure_ascii=False)
            write_atomically(path / FILE, (text + "\n").encode())
            for old in (path / "failed").glob("*.jsonl"):
                old.unlink()
            return cls(path, header["uid"], lock)
        except BlockingIOError:
            lock.close()
            raise GenerateError(
                f"{path} is being written by another process. Wait for it, or stop it."
            ) from None
        except BaseException:
            lock.close()
            raise

    @property
    def next_part(self) -> int:
        """The first part that is not there yet."""
        parts = [int(file.stem.removeprefix("part-")) for file in self.path.glob("part-*.jsonl")]
        return max(parts, default=-1) + 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        failed = self.path / "failed"
        for file in failed.glob("*.jsonl"):
            if not file.stat().st_size:
                file.unlink()
        if failed.is_dir() and not any(failed.iterdir()):
            failed.rmdir()
        self._lock.close()


def journals(path: Path, part: int = 0) -> tuple[Journal, Journal]:
    """Where the worker `part` keeps trajectories, and what was refused; one writer each."""
    name = f"part-{part:05d}.jsonl"
    return Journal(path / name), Journal(path / "failed" / name)


def _header(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    file = path / FILE
    fresh = {
        "format": FORMAT,
        "version": VERSION,
        "uid": secrets.token_hex(8),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "settings": settings,
    }
    if not file.exists():
        return fresh
    try:
        header = json.loads(file.read_bytes())
        if header["format"] != FORMAT or header["version"] > VERSION:
            raise ValueError(f"it is {header['format']!r}, version {header['version']}")
        before = header["settings"]
        header["uid"]
    except (ValueError, KeyError, TypeError) as error:
        raise GenerateError(
            f"{file} is not what this release writes ({error!r}). Use another `generate.output`."
        ) from error
    changed = [
        f"  {key}: {before.get(key)!r} before, {settings.get(key)!r} now"
        for key in {**before, **settings}
        if before.get(key) != settings.get(key)
    ]
    if changed and not any(part.stat().st_size for part in path.glob("part-*.jsonl")):
        return fresh
    if changed:
        raise GenerateError(
            f"{path} was made with other settings:\n"
            + "\n".join(changed)
            + "\nSet them back to go "
            "on, or use another `generate.output`."
        )
    return header


def _refuse_strangers(path: Path) -> None:
    if not path.exists() or (path / FILE).exists():
        return
    strangers = (
        [entry.name for entry in path.iterdir() if entry.name not in (".lock", FILE + ".tmp")]
        if path.is_dir()
        else [path.name]
    )
    if strangers:
        raise GenerateError(
            f"{path} holds something else ({', '.join(sorted(strangers)[:5])}), and no {FILE}. "
            "Use another `generate.output`."
        )
