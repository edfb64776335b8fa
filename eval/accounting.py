"""What this process takes of memory and disk, as the kernel counts it."""

from __future__ import annotations

import ctypes
from pathlib import Path

PROCESS = Path("/proc/self")


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


def _status(name: str) -> int:
    return 1024 * _field(PROCESS / "status", name)


def _field(file: Path, name: str) -> int:
    for line in file.read_text().splitlines():
        key, _, value = line.partition(":")
        if key == name:
            return int(value.split()[0])
    raise OSError(f"{file} has no {name}.")
