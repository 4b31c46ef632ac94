"""Runs Python code in a limited process, behind walls where bubblewrap can build them.

    caller (run.py)  ->  supervisor (supervisor.py, a process)  ->  [bwrap  ->]  the code

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

from .processes import MARK, hide_memory
from .run import CUT, GRACE, Limits, Outcome, missing_walls, run_python

__all__ = [
    "CUT",
    "GRACE",
    "MARK",
    "Limits",
    "Outcome",
    "hide_memory",
    "missing_walls",
    "run_python",
]
