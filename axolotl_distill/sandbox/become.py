"""A process becomes the code: limits, a user of its own, an environment with nothing in it."""

import contextlib
import ctypes
import os
import signal
import stat
import sys
from typing import Any

from .bubblewrap import command
from .processes import MARK, libc, processes_of

USERS = range(61_184, 65_280)  # ids that systems leave free


def become_the_code(order: dict[str, Any]) -> None:
    """Never returns."""
    try:
        os.setsid()
        # Where memory runs out before we look, the system is to kill the code, and not the filter.
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as score:
            score.write("1000")
        folder, user, python = order["folder"], order["user"], order["python"]
        for number, name in enumerate(("stdin", "stdout", "stderr")):
            flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT
            os.dup2(os.open(f"{folder}/{name}", flags, 0o600), number)
        os.chdir(f"{folder}/work")
        if user is not None:
            with contextlib.suppress(OSError):  # a root without the right to is as good as no root
                os.chown(".", user, user)
                os.chown("main.py", user, user)
        program = [python, "-I", "-B", "-X", "utf8", "main.py"]
        if order["bwrap"]:
            program = command(order, program)
        elif user is not None:
            _become_user(user, _is_closed(python))
        _limit(order, order["processes"] + (processes_of(os.getuid()) if user is None else 0))
        if sys.platform == "linux":
            libc().prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: not without its supervisor
        os.execve(program[0], program, _environment(order))
    except BaseException as error:
        os.write(2, f"cannot start the code: {error}\n".encode())
    finally:
        os._exit(127)


def _environment(order: dict[str, Any]) -> dict[str, str]:
    return {
        "PATH": "/usr/local/bin:/usr/bin:/bin",
        **dict.fromkeys(("HOME", "TMPDIR"), os.getcwd()),
        "USER": "sandbox",
        "LANG": "C.UTF-8",
        **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1"),
        MARK: order["mark"],
    }


def _limit(order: dict[str, Any], processes: int) -> None:
    import resource

    seconds = int(order["seconds"]) + 1
    for name, value in (
        ("RLIMIT_AS", order["memory_mb"] << 20),
        ("RLIMIT_CPU", seconds),
        ("RLIMIT_FSIZE", order["file_mb"] << 20),
        ("RLIMIT_NPROC", processes),
        ("RLIMIT_NOFILE", 128),
        ("RLIMIT_MSGQUEUE", 0),
        ("RLIMIT_CORE", 0),
    ):
        # A system may not know a limit, or already have a lower one.
        with contextlib.suppress(AttributeError, ValueError, OSError):
            resource.setrlimit(getattr(resource, name), (value, value))


def _is_closed(python: str) -> bool:
    """Whether only its owner gets to this Python, such as one in root's home."""
    path = os.path.realpath(python)
    places = [path, os.path.dirname(python)]
    while path != "/":
        path = os.path.dirname(path)
        places.append(path)
    return not all(os.stat(place).st_mode & stat.S_IXOTH for place in places)


def _become_user(user: int, reads_all: bool) -> None:
    """Gives up root; with `reads_all` except for reading."""
    sets = (ctypes.c_uint32 * 6)(*[1 << 2] * 3, 0, 0, 0)  # CAP_DAC_READ_SEARCH
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    with contextlib.suppress(OSError):
        if reads_all and sys.platform == "linux":
            libc().prctl(8, 1, 0, 0, 0)  # PR_SET_KEEPCAPS
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
        if reads_all and sys.platform == "linux":
            if libc().capset(header, sets) == 0:
                libc().prctl(47, 2, 2, 0, 0)  # PR_CAP_AMBIENT_RAISE
            else:
                libc().capset(header, (ctypes.c_uint32 * 6)())
