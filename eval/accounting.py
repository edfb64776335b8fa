"""What this process takes of memory and disk, as the kernel counts it."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

PROCESS = Path("/proc/self")
EXITING = 0x4
"""PF_EXITING of the kernel's flags of a thread: set before whoever joins it goes on."""

FLAGS_BEHIND_NAME = 6
"""Where these stand in /proc/PID/stat (proc_pid_stat(5)), counted from behind the name, which may have spaces."""


def resident_set() -> int:
    """Bytes of the resident set."""
    return _status("VmRSS")


def highest_resident_set() -> int:
    """The most bytes the resident set has had since the start, or since `forget_highest`."""
    return _status("VmHWM")


def forget_highest() -> None:
    """Lets `highest_resident_set` count from now."""
    (PROCESS / "clear_refs").write_text("5")


def return_freed_memory() -> None:
    """Gives what the C library keeps of freed memory back to the system, where it can (glibc).

    Not the package's: a process that measures a competitor without PyTorch must not import it.
    """
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def disk_bytes() -> int:
    """Bytes that this process has had read from disks, read-ahead included, whichever way it asked."""
    return _field(PROCESS / "io", "read_bytes")


def threads() -> int:
    """Threads of this process but those that are ending: the kernel lists one for a moment after it was joined."""
    return sum(not flags & EXITING for flags in _flags_of_threads())


def descriptors() -> int:
    """Open files of this process."""
    return len(os.listdir(PROCESS / "fd"))


def _flags_of_threads() -> Iterator[int]:
    for thread in (PROCESS / "task").iterdir():
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended meanwhile
            _, _, behind_name = (thread / "stat").read_text().rpartition(")")
            yield int(behind_name.split()[FLAGS_BEHIND_NAME])


def _status(name: str) -> int:
    return 1024 * _field(PROCESS / "status", name)


def _field(file: Path, name: str) -> int:
    for line in file.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise OSError(f"{file} has no {name}.")
