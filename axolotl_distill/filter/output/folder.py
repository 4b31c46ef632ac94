"""The dataset's folder: built under another name, put in place whole."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from axolotl_distill.disk.lock import lock_folder
from axolotl_distill.errors import ConfigError, FilterError

REPORT = "report.json"
ENTRIES = ("README.md", REPORT, "tokens.png", "data", "rejected")
SHARD = re.compile(r"(train|eval|rejected)-[\w-]*\d{5}-of-\d{5}\.(parquet|jsonl\.gz)")


class DatasetFolder:
    """Where a filter writes: beside `path` until all is there, and then in its place.

    A filter that fails or is killed leaves what was at `path` as it was; killed in the moment
    between the two renames, it leaves it as `.old`, and the next one puts it back.
    Raises ConfigError where `path` holds anything that no filter wrote.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path).resolve()
        if Path.cwd().is_relative_to(self.path):
            raise ConfigError(
                f"`filter.output: {path}` is the folder this runs in, or one above it, and a "
                "filter replaces its folder wholly. Name one of its own, such as ./dataset."
            )
        self._part = self.path.with_name(f".{self.path.name}.part")
        self._old = self.path.with_name(f".{self.path.name}.old")
        self._refuse_foreign()

    @contextmanager
    def build(self) -> Iterator[Path]:
        """An empty folder to write to, which replaces `path` when the context ends well.

        Raises FilterError while another filter is at work here.
        """
        with self._locked():
            if self._old.exists() and not self.path.exists():
                self._old.rename(self.path)
            for left in (self._part, self._old):
                shutil.rmtree(left, ignore_errors=True)
            self._part.mkdir()
            try:
                yield self._part
            except BaseException:
                shutil.rmtree(self._part, ignore_errors=True)
                raise
            if self.path.exists():
                self.path.rename(self._old)
            self._part.rename(self.path)
            shutil.rmtree(self._old, ignore_errors=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The lock is a file beside `path`, which itself is replaced; it goes in the end, and who
        opened it before looks for a new one."""
        file = self.path.with_name(f".{self.path.name}.lock")
        file.parent.mkdir(parents=True, exist_ok=True)
        lock = lock_folder(self.path, FilterError, "`filter.output`", at=file)
        try:
            yield
        finally:
            file.unlink(missing_ok=True)
            lock.release()

    def _refuse_foreign(self) -> None:
        if not self.path.exists():
            return
        if not self.path.is_dir():
            raise ConfigError(f"`filter.output: {self.path}` is a file; name a folder.")
        entries = sorted(entry.name for entry in self.path.iterdir())
        foreign = [name for name in entries if name not in ENTRIES]
        for folder in ("data", "rejected"):
            files = (self.path / folder).glob("*")
            foreign += [f"{folder}/{file.name}" for file in files if not SHARD.match(file.name)]
        if foreign or (entries and REPORT not in entries):
            raise ConfigError(
                f"`filter.output: {self.path}` holds {', '.join((foreign or entries)[:5])}, which "
                "no filter wrote, and a filter replaces its folder wholly. Name another folder, "
                "or remove it yourself."
            )
