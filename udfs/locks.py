"""Who has a file locked: the question, without taking a lock or waiting for one."""

from __future__ import annotations

import fcntl
import struct
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

# struct flock, as the system's headers have it.
_FLOCK = "qqihh" if sys.platform == "darwin" else "hhqqi"


@dataclass(frozen=True)
class Holder:
    """A process that has a file locked; `writes` where others are not even let read."""

    pid: int
    writes: bool

    def __str__(self) -> str:
        """The process as a reader would look for it."""
        try:
            found = subprocess.run(
                ["ps", "-p", str(self.pid), "-o", "args="],
                capture_output=True,
                text=True,
                check=False,
            ).stdout.strip()
        except OSError:  # there is no `ps` here
            found = ""
        return f"process {self.pid}" + (f", {found[:100]}" if found else "")


def lock_holder(path: Path) -> Holder | None:
    """The process that keeps this one from writing a file; None where there is none.

    Only locks of POSIX (`fcntl`) count, which DuckDB takes. Not for a file that this process has
    locked itself: it would lose that lock.

    Raises:
        OSError: the file cannot be opened.
    """
    wanted = {"l_type": fcntl.F_WRLCK, "l_whence": 0, "l_start": 0, "l_len": 0, "l_pid": 0}
    darwin = ("l_start", "l_len", "l_pid", "l_type", "l_whence")
    linux = ("l_type", "l_whence", "l_start", "l_len", "l_pid")
    names = darwin if sys.platform == "darwin" else linux
    with path.open("rb") as file:
        asked = struct.pack(_FLOCK, *(wanted[name] for name in names))
        answer = fcntl.fcntl(file, fcntl.F_GETLK, asked)
    found = dict(zip(names, struct.unpack(_FLOCK, answer), strict=True))
    if found["l_type"] == fcntl.F_UNLCK:
        return None
    return Holder(found["l_pid"], writes=found["l_type"] == fcntl.F_WRLCK)
