"""The folder of a generation: its settings, its lock, and what is there already.

generation.json      uid, settings that must stay, and what may grow: prompts, n, terms
part-*.jsonl         trajectories
failed/*.jsonl       what the teacher refused in the last run, with its reason
aside/prompts.jsonl  rows of the prompts that could not be asked in the last run, with the reason
aside/damaged.jsonl  lines of part-*.jsonl that were no longer what was written; asked for again
"""

import json
import secrets
from collections.abc import Collection, Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self, cast

from filelock import FileLock

from axolotl_distill.config.generate import GenerateArgs
from axolotl_distill.config.teacher import TeacherArgs
from axolotl_distill.disk.atomic import TEMPORARY, atomically, write_atomically
from axolotl_distill.disk.lock import LOCK, lock_folder
from axolotl_distill.errors import GenerateError
from axolotl_distill.generate.prompts import Aside
from axolotl_distill.generate.tally import Tally, counted
from axolotl_distill.show import without_secrets
from axolotl_distill.teachers.fingerprint import identity
from axolotl_distill.trajectories import Damage, Journal, Trajectory, read_trajectories

FILE = "generation.json"
FORMAT = "axolotl-distill generation"
VERSION = 1


def settings_of(teacher: TeacherArgs, args: GenerateArgs) -> dict[str, Any]:
    """What decides how a completion reads. Where a server is, how many prompts, budgets are not.
    Which weights a server has it does not tell."""
    keys = (
        *("temperature", "top_p", "max_tokens", "system", "examples", "seed", "logprobs", "extra"),
        *("thinking_tags", "thinking_opened"),
    )
    chosen = without_secrets(args.model_dump(mode="json"))
    who = {"name": teacher.model} if teacher.server is not None else identity(teacher)
    return {"teacher": who, **{key: chosen[key] for key in keys}}


class GenerationFolder:
    """A context: locked while it is open.

    uid      names this generation
    done     (prompt_id, sample) of all rows there when it was opened, by their ids
    earlier  counts over them
    damaged  lines that were put aside when it was opened
    """

    def __init__(self, path: Path, lock: FileLock):
        self.path = path
        self.uid = ""
        self._lock = lock
        self.done: dict[str, tuple[str, int]] = {}
        self.earlier = Tally()
        self.damaged: list[Damage] = []
        if any(path.glob("*.jsonl")):
            for row in read_trajectories(path, self.damaged.append):
                if not {"id", "prompt_id", "sample"} <= row.keys():
                    raise GenerateError(
                        f"{path} has a row without id, prompt_id or sample, which no `generate` "
                        f"wrote: {row!r:.200}. Take it out, or use another `generate.output`."
                    )
                self.done[row["id"]] = (row["prompt_id"], row["sample"])
                self.earlier.add(counted(cast(Trajectory, row)))

    @classmethod
    def open(
        cls,
        path: str | Path,
        settings: dict[str, Any],
        about: dict[str, Any],
        prompt_ids: Collection[str] | None = None,
    ) -> Self:
        """Begin a folder, or go on with one made with the same settings.

        about       is kept beside them and may differ from run to run
        prompt_ids  of all that is asked now; None asks about no prompts

        Raises GenerateError when another process is at work, when the folder holds something else,
        when a setting differs from what the rows that are there were generated with, or when these
        answer none of the prompts that are asked now. Then nothing is changed.
        """
        path = Path(path)
        _refuse_strangers(path)
        path.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(path, GenerateError, "`generate.output`")
        try:
            header = _header(path, settings)
            folder = cls(path, lock)
            folder._refuse_other_prompts(prompt_ids)
            folder._put_damage_aside()
            folder.uid = header["uid"]
            text = json.dumps({**header, **without_secrets(about)}, indent=1, ensure_ascii=False)
            write_atomically(path / FILE, (text + "\n").encode(errors="replace"))
            for old in [*(path / "failed").glob("*.jsonl"), path / "aside" / "prompts.jsonl"]:
                old.unlink(missing_ok=True)
            return folder
        except BaseException:
            lock.release()
            raise

    def strays(self, prompt_ids: Collection[str], n: int) -> tuple[int, int]:
        """How many rows are of prompts that are not among these, and how many of these prompts'
        are beyond `n` a prompt."""
        others = sum(prompt not in prompt_ids for prompt, _ in self.done.values())
        beyond = sum(sample >= n and prompt in prompt_ids for prompt, sample in self.done.values())
        return others, beyond

    def put_aside(self, rows: Iterable[Aside]) -> None:
        """Keep rows of the prompts that are not asked, with the reason."""
        with Journal(self.path / "aside" / "prompts.jsonl") as journal:
            journal.append(
                {"file": a.source, "row": a.number, "reason": a.reason, "given": _shown(a.row)}
                for a in rows
            )

    def _refuse_other_prompts(self, prompt_ids: Collection[str] | None) -> None:
        if not prompt_ids or not self.done:
            return
        if not any(prompt in prompt_ids for prompt, _ in self.done.values()):
            raise GenerateError(
                f"{self.path} holds {len(self.done)} answers, and none of them is to one of the "
                f"{len(prompt_ids)} prompts that are asked now: these are other prompts. Use "
                "another `generate.output`, or set `generate.prompts` back."
            )

    def _put_damage_aside(self) -> None:
        """The lines are kept first, then leave their files; a kill between leaves them twice."""
        if not self.damaged:
            return
        with Journal(self.path / "aside" / "damaged.jsonl") as journal:
            journal.append(
                {
                    "file": damage.file.name,
                    "line": damage.number,
                    "reason": damage.reason,
                    "text": damage.line.decode(errors="backslashreplace"),
                }
                for damage in self.damaged
            )
        for file in {damage.file for damage in self.damaged}:
            gone = {damage.number for damage in self.damaged if damage.file == file}
            with file.open("rb") as lines, atomically(file) as mended:
                mended.writelines(line for n, line in enumerate(lines, 1) if n not in gone)

    @property
    def next_part(self) -> int:
        """The first part that is not there yet."""
        parts = [int(file.stem.removeprefix("part-")) for file in self.path.glob("part-*.jsonl")]
        return max(parts, default=-1) + 1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for name in ("failed", "aside"):
            folder = self.path / name
            for file in folder.glob("*.jsonl"):
                if not file.stat().st_size:
                    file.unlink()
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()
        self._lock.release()


class Part:
    """Where one worker keeps what comes: trajectories, and what was refused. A context."""

    def __init__(self, folder: Path, number: int = 0):
        name = f"part-{number:05d}.jsonl"
        self.answers, self.refusals = Journal(folder / name), Journal(folder / "failed" / name)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.answers.close()
        self.refusals.close()


def _shown(value: Any) -> Any:
    """What JSON takes of a row, whatever it holds."""
    return json.loads(json.dumps(value, default=repr))


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
        [entry.name for entry in path.iterdir() if entry.name not in (LOCK, FILE + TEMPORARY)]
        if path.is_dir()
        else [path.name]
    )
    if strangers:
        raise GenerateError(
            f"{path} holds something else ({', '.join(sorted(strangers)[:5])}), and no {FILE}. "
            "Use another `generate.output`."
        )
