"""Folders at an address: s3://, gs://, hf:// and whatever else fsspec reads.

Credentials come from where the file system's own package looks for them: the environment, the
files of the cloud's tools. No message shows one.
"""

import hashlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

from axolotl_distill.errors import RemoteError, StoreMissingError
from axolotl_distill.show import foreign, redact

PASSWORD = re.compile(r"://[^/?#]*:[^/?#]*@")
TRIES = 5
# Seconds before the second try; twice as long before each that follows.
PAUSE = 0.5
BLOCK = 8 << 20
AT_ONCE = 4
PACKAGES = {
    "s3": "s3fs",
    "gs": "gcsfs",
    "gcs": "gcsfs",
    "az": "adlfs",
    "abfs": "adlfs",
    "adl": "adlfs",
    "oci": "ocifs",
    "hf": "huggingface_hub",
    "sftp": "paramiko",
    "http": "aiohttp",
    "https": "aiohttp",
}
CREDENTIALS = {
    "s3": "AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE; AWS_ENDPOINT_URL for a "
    "server that is not Amazon's",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS",
    "gcs": "GOOGLE_APPLICATION_CREDENTIALS",
    "az": "AZURE_STORAGE_CONNECTION_STRING",
    "abfs": "AZURE_STORAGE_CONNECTION_STRING",
    "hf": "HF_TOKEN, or `hf auth login`",
}
NO_CREDENTIALS = {"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound"}
# They have no folders: what makes one would make the bucket.
OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "adl", "oci", "hf"}
# By the names of their classes, for their packages may not be there.
FORBIDDEN = {*NO_CREDENTIALS, "GatedRepoError", "TokenRetrievalError"}
# What tells one object from another under the same name; which there are depends on the system.
MARKS = ("ETag", "etag", "md5Hash", "crc32c", "generation", "version_id", "blob_id")
TIMES = ("LastModified", "last_modified", "last_commit", "created", "mtime", "updated")

T = TypeVar("T")


class RemoteFolder:
    """A folder on any file system that fsspec knows; what fails is tried again, longer and longer
    apart. Safe to fork and to pickle.

    Every method raises StoreMissingError where there is nothing, and RemoteError for what is
    refused or does not come.
    """

    def __init__(self, url: str, tries: int | None = None):
        """`tries`: how often a thing is tried (5), the pauses between them doubling."""
        self.url, self._tries = url.rstrip("/"), tries
        if PASSWORD.search(url):
            raise RemoteError(
                f"{self}: an address must not hold a password, which would be written into logs "
                f"and configs. {self._credentials()}"
            )

    def __str__(self) -> str:
        return redact(self.url)

    def where(self, name: str) -> str:
        """The address of a file, as a message may show it."""
        return f"{self}/{name}"

    def read(self, name: str, most: int) -> bytes:
        """All of a small file. Raises RemoteError where it is larger than `most`."""
        size = self.size(name)
        if size > most:
            raise RemoteError(f"{self.where(name)} has {size} bytes, more than the {most} expected")
        return b"".join(self.blocks(name, size))

    def size(self, name: str) -> int:
        """Bytes."""
        return int(self.about(name)["size"] or 0)

    def about(self, name: str) -> dict[str, Any]:
        """What the file system says of a file: `size`, and what else it knows."""

        def ask(files: Any, path: str) -> dict[str, Any]:
            files.invalidate_cache(path)
            return files.info(path)

        return self._tried(name, ask)

    def listing(self) -> dict[str, dict[str, Any]]:
        """name -> what `about` says, of every file below; none where there is no folder."""

        def find(files: Any, path: str) -> dict[str, dict[str, Any]]:
            files.invalidate_cache(path)
            found = files.find(path, detail=True)
            start = len(files._strip_protocol(path).rstrip("/")) + 1
            return {files._strip_protocol(name)[start:]: about for name, about in found.items()}

        try:
            return self._tried("", find)
        except StoreMissingError:
            return {}

    def blocks(self, name: str, size: int) -> Iterator[bytes]:
        """The first `size` bytes of a file, several blocks asked for at once; what was cut off is
        asked for again. Raises RemoteError where the file gives fewer."""
        step = BLOCK * AT_ONCE
        for start in range(0, size, step):
            starts = list(range(start, min(start + step, size), BLOCK))
            stops = [min(at + BLOCK, size) for at in starts]

            def ask(files: Any, path: str, starts: Any = starts, stops: Any = stops) -> list[bytes]:
                found = files.cat_ranges([path] * len(starts), starts, stops, on_error="return")
                for block, first, last in zip(found, starts, stops, strict=True):
                    if isinstance(block, BaseException):
                        raise block
                    if len(block) != last - first:
                        raise EOFError(f"{len(block)} of {last - first} bytes came")
                return found

            yield from self._tried(name, ask)

    def put(self, file: Path, name: str) -> None:
        """Copy a local file there, in several parts where the file system has them. Raises
        RemoteError, also where less arrived."""

        def send(files: Any, path: str) -> None:
            if self._scheme not in OBJECT_STORES:
                files.makedirs(files._parent(path), exist_ok=True)
            files.put_file(str(file), path)

        self._tried(name, send)
        size, arrived = file.stat().st_size, self.size(name)
        if arrived != size:
            raise RemoteError(
                f"{self.where(name)} has {arrived} bytes after {size} were written. Run the same "
                "command again."
            )

    def remove(self, name: str) -> None:
        """Nothing happens where it is not there."""

        def forget(files: Any, path: str) -> None:
            files.rm_file(path)

        with suppress(StoreMissingError):
            self._tried(name, forget)

    def _tried(self, name: str, act: Callable[[Any, str], T]) -> T:
        where = self.where(name) if name else str(self)
        tries = self._tries or TRIES
        for number in range(tries):
            try:
                files, path = self._files()
                return act(files, f"{path.rstrip('/')}/{name}" if name else path)
            except Exception as error:
                self._refuse(where, error)
                if number == tries - 1:
                    raise RemoteError(
                        f"{where} cannot be reached; after {tries} tries: {_said(error)}. Is the "
                        "network up, and the address right? The same command goes on."
                    ) from error
                time.sleep(PAUSE * 2**number)
        raise AssertionError("the last try returns or raises")

    def _files(self) -> tuple[Any, str]:
        """The file system and our place in it. Asked for anew each time: after a fork the one that
        was made before cannot be used, and fsspec keeps those that can."""
        from fsspec.core import url_to_fs

        return url_to_fs(self.url)

    def _refuse(self, where: str, error: Exception) -> None:
        """Raises for what another try would not change."""
        scheme, kind = self._scheme, type(error).__name__
        if isinstance(error, FileNotFoundError) or kind in (
            "RepositoryNotFoundError",
            "RevisionNotFoundError",
            "EntryNotFoundError",
        ):
            raise StoreMissingError(
                f"{where} is not there: no such bucket, folder or file. Check the address"
                f"{'' if scheme not in CREDENTIALS else ', and whose credentials are used'}."
            ) from error
        if isinstance(error, PermissionError) or kind in FORBIDDEN:
            raise RemoteError(
                f"{where}: permission denied ({_said(error)}). {self._credentials()}"
            ) from error
        if isinstance(error, ImportError):
            package = PACKAGES.get(scheme)
            remedy = f"`pip install {package}`" if package else "Install what it names"
            raise RemoteError(
                f"{where}: the package that reads {scheme}:// is missing ({_said(error)}). "
                f"{remedy}."
            ) from error
        if isinstance(error, ValueError) and "rotocol not known" in str(error):
            raise RemoteError(
                f"{where}: no file system is known for {scheme}://. Known are {', '.join(PACKAGES)}"
                " and all others of fsspec; a local folder is written without ://."
            ) from error
        if isinstance(error, ValueError | TypeError | NotImplementedError):
            raise RemoteError(f"{where} cannot be used: {_said(error)}") from error

    @property
    def _scheme(self) -> str:
        return self.url.partition("://")[0].lower()

    def _credentials(self) -> str:
        known = CREDENTIALS.get(self._scheme)
        how = f" ({known})" if known else ""
        return f"Give credentials in the environment, as the file system takes them{how}."


def _said(error: BaseException) -> str:
    said = foreign(" ".join(str(error).split()), 300).rstrip(".")
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def mark_of(about: dict[str, Any]) -> str:
    """By what an object is known again; '' where the system tells nothing of the kind."""
    known = {key: str(about[key]) for key in MARKS if about.get(key)}
    times = {key: str(about[key]) for key in TIMES if about.get(key)}
    found = known or times
    return json.dumps({**found, "size": about.get("size")}, sort_keys=True) if found else ""


def same_mark(one: str, other: str) -> bool:
    """Whether two marks say nothing different; a listing may tell less than a question."""
    mine, theirs = (json.loads(mark or "{}") for mark in (one, other))
    return all(mine[key] == theirs[key] for key in mine.keys() & theirs.keys())


def hash_of(blocks: Iterable[bytes]) -> str:
    """sha256, hex."""
    digest = hashlib.sha256()
    for block in blocks:
        digest.update(block)
    return digest.hexdigest()
