"""Weights as files that a server reads, one version after another."""

import secrets
import shutil
from pathlib import Path

OURS = "axolotl-distill-"


class Versions:
    """A folder of versions of one student's weights. Nobody else's folder.

    there  what the server calls the folder
    """

    def __init__(self, folder: Path, there: str | None = None):
        self.folder, self.there = folder.absolute(), there
        # Another run, or this one begun anew, may have given the server a step of the same number.
        self.run = secrets.token_hex(4)

    def name(self, version: str) -> str:
        return f"{OURS}{self.run}-{version}"

    def keep(self, new: Path, name: str) -> str:
        """The folder `new` as `name`; readable for whomever the server runs as."""
        for file in new.iterdir():
            file.chmod(0o644)
        new.chmod(0o755)
        new.rename(self.folder / name)
        return f"{self.there.rstrip('/')}/{name}" if self.there else str(self.folder / name)

    def remove(self, name: str) -> None:
        """Whatever there is of it, half-written too."""
        shutil.rmtree(self.folder / f".{name}", ignore_errors=True)
        shutil.rmtree(self.folder / name, ignore_errors=True)

    def others(self) -> list[str]:
        """Versions that killed runs left; what they had not finished is removed."""
        for unfinished in self.folder.glob(f".{OURS}*"):
            shutil.rmtree(unfinished, ignore_errors=True)
        return sorted(path.name for path in self.folder.glob(f"{OURS}*"))
