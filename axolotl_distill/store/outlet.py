"""The address at which a store is to lie that is written here: its shards are sent as they are
committed, and removed here when the address has them.

Here, in the spool, is what a writer has anywhere, but for the shards that were sent, and

    sent.jsonl      those: name, and by what each of their files is known again

At the address lie from the start a manifest that is not complete, which keeps readers out, and
shards.jsonl, which names shards that are there whole. So a capture that lost its machine goes on
elsewhere. The manifest with all shards is last.
"""

import json
import logging
import threading
import time
from collections import deque
from contextlib import suppress
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tqdm import tqdm

from axolotl_distill.disk.atomic import TEMPORARY, sync_folder, write_atomically
from axolotl_distill.disk.journal import Journal
from axolotl_distill.disk.remote import RemoteFolder, mark_of, same_mark
from axolotl_distill.disk.rows import json_lines
from axolotl_distill.errors import StoreError, StoreMissingError
from axolotl_distill.store import journal
from axolotl_distill.store.manifest import FILE, MAX_BYTES, Manifest
from axolotl_distill.store.schema import Shard
from axolotl_distill.store.sealed import uid_of
from axolotl_distill.store.sent import put_once

LOG = logging.getLogger(__name__)
SENT = "sent.jsonl"
PART = ".part"
CARD = "README.md"
# Two minutes of pauses: what a teacher costs meanwhile is lost by giving up sooner.
TRIES = 9
# How much of shards.jsonl may be behind at the address: it is sent whole, thus not for each shard.
BEHIND = 100
SHOWN_AFTER = 1.5
ENDS_WITHIN = 10.0


class Outlet:
    """See above. The writer calls it, holding the spool's lock; a thread sends.

    url     the address        spool  the folder in which the store is written
    shards  most that may lie in the spool, the one that is being written among them

    What stops the thread is raised by the next `wait_for_room` or `drain`: RemoteError for what is
    refused or does not come, StoreError where somebody else writes to the address.
    """

    def __init__(self, url: str, spool: Path, shards: int):
        self.remote = RemoteFolder(url, TRIES)
        self.spool, self._most = spool, shards
        self._there: dict[str, dict[str, Any]] = {}
        self._brought = False
        self._marks: dict[str, dict[str, str]] = {}
        self._names: set[str] = set()
        self._noted: Journal | None = None
        self._told = 0
        self._waiting: deque[Shard] = deque()
        self._changed = threading.Condition()
        self._fault: BaseException | None = None
        self._ended = False
        self._thread: threading.Thread | None = None

    def __str__(self) -> str:
        return str(self.remote)

    @property
    def sent(self) -> set[str]:
        """Names of files that the address has."""
        return self._names

    def look(self) -> bytes | None:
        """The manifest at the address. Raises StoreError where something else lies there, or
        another store than the one that was begun in the spool."""
        there = self._there = self.remote.listing()
        theirs = self.remote.read(FILE, MAX_BYTES) if FILE in there else None
        ours = _bytes(self.spool / FILE)
        strangers = sorted({*there} - {FILE})
        if theirs is None and strangers:
            raise StoreError(
                f"{self} holds other files ({strangers[0]}) and no teacher store. Choose another "
                "address (`distill.capture.output`, or `--output`), or delete what is there."
            )
        if ours is not None and theirs is not None and strangers and uid_of(ours) != uid_of(theirs):
            raise StoreError(
                f"{self} holds another store ({uid_of(theirs)}) than the one that was begun here "
                f"({uid_of(ours)}, in {self.spool}). Choose another address, or delete one of the "
                "two."
            )
        return theirs

    def finished(self) -> Manifest | None:
        """The store at the address, where it is complete. Raises what `look` does."""
        if (data := self.look()) is None:
            return None
        with TemporaryDirectory() as folder:
            (Path(folder) / FILE).write_bytes(data)
            try:
                manifest = Manifest.load(Path(folder))
            except StoreError as error:
                raise type(error)(str(error).replace(folder, str(self))) from error
        return manifest if manifest.complete else None

    def begin(self) -> None:
        """Bring what the address has of a store into a spool that has none, and read what was
        sent. Raises what `look` does, and StoreMissingError where a shard that was sent is gone."""
        theirs = self.look()
        if not (self.spool / FILE).exists():
            for name in (SENT, journal.FILE):
                (self.spool / name).unlink(missing_ok=True)
            if theirs is not None:
                self._bring(theirs)
        self._noted = Journal(self.spool / SENT)
        with (self.spool / SENT).open("rb") as lines:
            for line in json_lines(lines):
                row = line.row or {}
                self._marks[str(row.get("shard"))] = row.get("marks", {})
        self._names = {name for marks in self._marks.values() for name in marks}
        self._told = len(self._marks) if journal.FILE in self._there else 0
        if missing := sorted(self._names - {*self._there}):
            raise StoreMissingError(
                f"{self.remote.where(missing[0])} was sent and is gone, with "
                f"{len(missing) - 1} other files. Delete what else is there, and {self.spool}, to "
                "begin anew."
            )

    def _bring(self, theirs: bytes) -> None:
        lines = b""
        if journal.FILE in self._there:
            lines = self.remote.read(journal.FILE, journal.MAX_BYTES)
        write_atomically(self.spool / journal.FILE, lines)
        write_atomically(self.spool / FILE, theirs)
        self._brought = True
        try:
            manifest = Manifest.load(self.spool)
            marks = [
                {"shard": shard.name, "marks": {name: self._mark(name) for name in shard.files}}
                for shard in manifest.shards
            ]
        except StoreError as error:
            raise type(error)(str(error).replace(str(self.spool), str(self))) from error
        text = "".join(json.dumps(row) + "\n" for row in marks)
        write_atomically(self.spool / SENT, text.encode())

    def _mark(self, name: str) -> str:
        if name not in self._there:
            raise StoreMissingError(
                f"{self.remote.where(name)} is named by {journal.FILE} there, and is not there. "
                "Delete all that is at the address to begin anew."
            )
        return mark_of(self._there[name])

    def go_on(self, manifest: Manifest) -> None:
        """What the spool has is what the address is to have: says there that a store is begun,
        removes what was sent, sends what was not."""
        if manifest.complete:
            self.finish(manifest)
            return
        data = (self.spool / FILE).read_bytes()
        if FILE not in self._there or self.remote.read(FILE, MAX_BYTES) != data:
            self.remote.put(self.spool / FILE, FILE)
        for shard in manifest.shards:
            if shard.name in self._marks:
                self._remove(shard)
            else:
                self.add(shard)

    def add(self, shard: Shard) -> None:
        """Send a shard that was committed, after those before it."""
        with self._changed:
            self._waiting.append(shard)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, daemon=True)
                self._thread.start()
            self._changed.notify_all()

    def wait_for_room(self) -> None:
        """Returns when a shard more may lie here. Raises what stopped the sending."""
        start = time.monotonic()
        self._wait(self._most - 1)
        if (seconds := time.monotonic() - start) > SHOWN_AFTER:
            LOG.warning(
                f"axolotl-distill: waited {seconds:.1f} s until {self} had taken a shard: at most "
                f"{self._most} lie in {self.spool} (`distill.capture.spool.shards`)"
            )

    def drain(self) -> None:
        """Returns when every shard is there. Raises what stopped the sending."""
        left = len(self._waiting)
        with tqdm(
            total=left, unit=" shards", desc=f"sending to {self}", delay=SHOWN_AFTER, leave=False
        ) as progress:
            while left:
                left -= 1
                self._wait(left)
                progress.update()
        self._wait(0)

    def _wait(self, most: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._fault or len(self._waiting) <= most)
            if self._fault is not None:
                raise self._fault

    def finish(self, manifest: Manifest) -> None:
        """All shards are there: the card and the manifest, and the spool is emptied. Raises
        StoreError where what lies there is not what was sent."""
        data = (self.spool / FILE).read_bytes()
        there = self.remote.listing()
        if FILE not in there or self.remote.read(FILE, MAX_BYTES) != data:
            self._owned()
            for shard in manifest.shards:
                for name, mark in self._marks[shard.name].items():
                    self._check(name, mark, there.get(name))
            self.remote.put(self.spool / CARD, CARD)
            self.remote.put(self.spool / FILE, FILE)
        if journal.FILE in there:
            self.remote.remove(journal.FILE)
        self._clear(manifest)

    def _check(self, name: str, mark: str, listed: dict[str, Any] | None) -> None:
        """Raises StoreError unless the file there is the one that was sent."""
        # A listing may tell the same otherwise than a question, so a question decides.
        if listed is not None and same_mark(mark_of(listed), mark):
            return
        if listed is None or not same_mark(mark_of(self.remote.about(name)), mark):
            raise StoreError(
                f"{self.remote.where(name)} is not as it was sent: somebody else wrote there, or "
                f"removed it. Delete all that is at the address, and {self.spool}, to capture anew."
            )

    def _clear(self, manifest: Manifest) -> None:
        for shard in manifest.shards:
            self._remove(shard)
        self._close_note()
        # What a kill amid a file left, then the manifest last: where it is, all else is asked for.
        for left in [*self.spool.glob(f"*{TEMPORARY}"), *self.spool.glob(f"*{PART}")]:
            left.unlink(missing_ok=True)
        for name in (CARD, journal.FILE, SENT, FILE):
            (self.spool / name).unlink(missing_ok=True)
        sync_folder(self.spool)

    def forget(self) -> None:
        """A store without a row was given up: it does not lie there either."""
        (self.spool / SENT).unlink(missing_ok=True)
        with suppress(StoreError):
            if not {*self.remote.listing()} - {FILE, journal.FILE}:
                self.remote.remove(journal.FILE)
                self.remote.remove(FILE)

    def stop(self) -> None:
        """Nothing is sent from here on but what is under way."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join(ENDS_WITHIN)
        self._close_note()

    def give_up(self) -> None:
        """The store at the address is not ours to go on with: what was brought of it goes."""
        self.stop()
        if self._brought:
            (self.spool / FILE).unlink(missing_ok=True)

    def _close_note(self) -> None:
        if self._noted is not None:
            self._noted.close()
            self._noted = None

    def _work(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or self._waiting)
                if self._ended:
                    return
                shard = self._waiting[0]
            try:
                self._send(shard)
            except BaseException as fault:
                with self._changed:
                    self._fault = fault
                    self._changed.notify_all()
                return
            with self._changed:
                self._waiting.popleft()
                self._changed.notify_all()

    def _send(self, shard: Shard) -> None:
        self._owned()
        marks = {
            name: put_once(self.remote, self.spool, name, about, again=name in self._there)
            for name, about in shard.files.items()
        }
        if self._noted is None:
            return
        line = {"shard": shard.name, "marks": marks}
        self._noted.append(json.dumps(line).encode() + b"\n")
        self._marks[shard.name] = marks
        self._names |= {*marks}
        if len(self._marks) - self._told >= max(1, self._told // BEHIND):
            self._tell()
        self._remove(shard)

    def _tell(self) -> None:
        """The lines of the shards that are there."""
        with (self.spool / journal.FILE).open("rb") as file:
            lines = [file.readline() for _ in self._marks]
        part = self.spool / (journal.FILE + PART)
        part.write_bytes(b"".join(lines))
        self.remote.put(part, journal.FILE)
        part.unlink()
        self._told = len(lines)

    def _owned(self) -> None:
        """Raises StoreError where another writer has taken the address."""
        theirs, ours = self.remote.read(FILE, MAX_BYTES), (self.spool / FILE).read_bytes()
        if uid_of(theirs) != uid_of(ours):
            raise StoreError(
                f"{self} is being written by another capture (its store is {uid_of(theirs)}, ours "
                f"{uid_of(ours)}). Stop one of them, or choose another address."
            )

    def _remove(self, shard: Shard) -> None:
        for name in shard.files:
            (self.spool / name).unlink(missing_ok=True)


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
