"""What is a path on this machine, and what is an address."""

import re

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://")


def is_address(path: object) -> bool:
    """Whether a path is a URL: s3://…, hf://…, and file://… and memory://… too."""
    return ADDRESS.match(str(path)) is not None
