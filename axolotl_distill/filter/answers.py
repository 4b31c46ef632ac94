"""What servers answered and was paid for: one SQLite file, which survives kills and may be shared
by several runs at once."""

import hashlib
import json
import logging
import sqlite3
from pathlib import Path
from typing import Any, Self

from axolotl_distill.errors import FilterError

log = logging.getLogger(__name__)

FILE = "answers.sqlite"
BUSY_SECONDS = 60.0
DAMAGED = ("SQLITE_CORRUPT", "SQLITE_NOTADB")
TABLE = (
    "CREATE TABLE IF NOT EXISTS answers (key TEXT PRIMARY KEY, row TEXT NOT NULL, "
    "value TEXT NOT NULL, sum TEXT NOT NULL) WITHOUT ROWID"
)


class Answers:
    """Answers by the hash of what was asked, and of whom. They are on disk and not in memory.

    A file that is damaged is put aside, with a warning, and what it held is asked again. Raises
    FilterError where the file cannot be used otherwise.
    """

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / FILE
        self._database: sqlite3.Connection | None = None
        self._do("SELECT 1")

    def get(self, key: str) -> Any:
        """What is kept under `key`; None where nothing is, or no longer what was written."""
        for text, checksum in self._do("SELECT value, sum FROM answers WHERE key = ?", key):
            if checksum == _sum(key, text):
                return json.loads(text)
        return None

    def put(self, key: str, row: str, value: Any) -> None:
        """Returns when the answer, about the row `row`, is on the disk."""
        text = json.dumps(value)
        self._do(
            "INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?)", key, row, text, _sum(key, text)
        )

    def close(self) -> None:
        if self._database is not None:
            self._database.close()
            self._database = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _do(self, statement: str, *values: str) -> list[Any]:
        try:
            return self._opened().execute(statement, values).fetchall()
        except sqlite3.Error as error:
            if not str(getattr(error, "sqlite_errorname", "")).startswith(DAMAGED):
                raise FilterError(
                    f"{self.path}, which keeps the answers of servers, cannot be used: {error}. "
                    "Make room or mend its permissions, and run the same command again."
                ) from error
            self._put_aside(str(error))
        return self._do(statement, *values)

    def _opened(self) -> sqlite3.Connection:
        if self._database is None:
            # Every statement is a transaction of its own; in WAL mode it costs one fsync.
            database = sqlite3.connect(self.path, timeout=BUSY_SECONDS, isolation_level=None)
            self._database = database
            database.execute("PRAGMA journal_mode = WAL")
            database.execute("PRAGMA synchronous = FULL")
            database.execute(TABLE)
            (said,) = database.execute("PRAGMA quick_check(1)").fetchone()
            if said != "ok":
                self._put_aside(said)
                return self._opened()
        return self._database

    def _put_aside(self, why: str) -> None:
        self.close()
        number = sum(1 for _ in self.path.parent.glob(f"damaged-*-{FILE}"))
        aside = self.path.with_name(f"damaged-{number}-{FILE}")
        for end in ("", "-wal", "-shm"):  # the two others belong to it while it is written
            file = self.path.with_name(self.path.name + end)
            if file.exists():
                file.rename(aside.with_name(aside.name + end))
        log.warning(
            "%s is damaged (%s). It is put aside as %s, and what it held is asked again.",
            *(self.path, why, aside.name),
        )


def _sum(key: str, text: str) -> str:
    return hashlib.blake2b(f"{key}\0{text}".encode(), digest_size=8).hexdigest()
