"""Walls by bubblewrap: the code has a process tree, a network, shared memory and a /tmp of its own,
and of the files only the system's programs, Python and its own folder.
"""

import os
import sys
from typing import Any

SYSTEM: tuple[str, ...] = (
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/etc/ld.so.cache",
    "/etc/ld.so.conf",
)
SYSTEM += ("/etc/ld.so.conf.d", "/etc/alternatives", "/etc/localtime")
TEMPORARY = ("/tmp", "/var/tmp", "/dev/shm")
# Root, which builds the walls, is given up within them.
DROP = (
    "import os, sys; user = int(sys.argv[1]); os.setgroups([]); os.setresgid(user, user, user); "
    "os.setresuid(user, user, user); os.execv(sys.argv[2], sys.argv[2:])"
)


def command(order: dict[str, Any], program: list[str]) -> list[str]:
    """The command that runs `program` in the working folder within walls."""
    size, here = str(order["folder_mb"] << 20), os.getcwd()
    arguments = [order["bwrap"], "--die-with-parent", "--new-session"]
    arguments += ["--unshare-pid", "--unshare-ipc", "--unshare-net", "--unshare-uts"]
    if order["user"] is None:
        arguments += ["--unshare-user", "--disable-userns"]
    else:
        program = [program[0], "-I", "-S", "-c", DROP, str(order["user"]), *program]
        arguments += ["--cap-drop", "ALL", "--cap-add", "CAP_SETUID", "--cap-add", "CAP_SETGID"]
    for path in [*SYSTEM, *_pythons(program[0], order["path"])]:
        arguments += [*_parents(path), "--ro-bind-try", path, path]
    arguments += ["--proc", "/proc", "--dev", "/dev"]
    for path in TEMPORARY:
        arguments += ["--perms", "1777", "--size", size, "--tmpfs", path]
    arguments += [
        *_parents(here),
        "--bind",
        here,
        here,
        "--remount-ro",
        "/dev",
        "--remount-ro",
        "/",
    ]
    return [*arguments, "--chdir", here, "--", *program]


def _parents(path: str) -> list[str]:
    """bwrap would make the folders above one closed to all but itself."""
    parts = path.split("/")[1:-1]
    folders = ["/" + "/".join(parts[: n + 1]) for n in range(len(parts))]
    return [
        word
        for folder in folders
        if folder not in TEMPORARY and folder not in SYSTEM
        for word in ("--perms", "0755", "--dir", folder)
    ]


def _pythons(python: str, path: list[str]) -> list[str]:
    """Where Python, its library and installed packages are, if not where the system's are."""
    places = [os.path.dirname(os.path.dirname(p)) for p in (python, os.path.realpath(python))]
    places += [one for one in path if one.endswith(("site-packages", "dist-packages"))]
    places += [sys.prefix, sys.base_prefix]
    found = dict.fromkeys(os.path.abspath(place) for place in places)
    return [place for place in found if place not in ("/", "/usr") and os.path.isdir(place)]
