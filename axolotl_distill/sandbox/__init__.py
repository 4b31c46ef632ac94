"""Runs Python code in a limited process, behind walls where bubblewrap can build them.

    base.py         what a sandbox is (Sandbox), and a pool of workers (Pool)
    local.py        the two of this machine: Processes, and Bubblewrap with walls
    workers.py      a pool of processes of this machine

    caller (local.py)  ->  supervisor (supervisor.py, a process)  ->  [bwrap  ->]  the code

    bubblewrap.py   walls: no other process, file, network or memory is there for the code
    become.py       the process becomes the code: limits, a user of its own, a bare environment
    processes.py    what runs, how much memory it takes, how it is ended
    remove.py       folders however deep, and what the code left elsewhere

Without bubblewrap there are limits and no walls: they keep code that hangs, forks, floods or eats
memory from taking its caller down, and leave no process behind. They do not keep code that means
harm from reading files or using the network. NEITHER IS A SECURITY BOUNDARY like a machine of its
own: the kernel is shared.

This package uses the standard library only and imports itself relatively: the supervisor starts
without site-packages and whatever a .pth file there imports.
"""

from .base import CUT, GRACE, Failed, Limits, Outcome, Pool, Sandbox
from .local import Bubblewrap, Processes, best_here, missing_walls
from .processes import MARK, hide_memory

__all__ = [
    "CUT",
    "GRACE",
    "MARK",
    "Bubblewrap",
    "Failed",
    "Limits",
    "Outcome",
    "Pool",
    "Processes",
    "Sandbox",
    "best_here",
    "hide_memory",
    "missing_walls",
]
