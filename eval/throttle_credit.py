"""Takes away what the kernel's throttle has saved up for a process that did not read for a while.

The blkio controller works in slices of 100 ms: after a pause the first reads, of as many bytes as a slice allows, come
at the speed of the disk. A model of that size or less would seem to come from a fast disk.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path

SIZE = 64 << 20
READ_BYTES = 1 << 19
HELD_BACK_SECONDS = 0.02
"""A read that takes longer has waited for the next slice."""
HALF_SLICE_SECONDS = 0.05


def write_ballast(path: Path) -> None:
    """Writes the file that `spend_credit` reads, on the disk that is throttled."""
    if not path.exists():
        with path.open("wb") as file:
            for _ in range(SIZE >> 20):
                file.write(os.urandom(1 << 20))
            os.fsync(file.fileno())


def spend_credit(ballast: Path, megabytes_per_second: float) -> None:
    """Reads until the throttle holds a read back, and then half a slice more: on average, reads from now on come
    neither earlier nor later than at the rate."""
    descriptor = os.open(ballast, os.O_RDONLY | os.O_DIRECT)
    buffer = mmap.mmap(-1, READ_BYTES)
    try:
        seconds, read = 0.0, 0
        while seconds < HELD_BACK_SECONDS and read < SIZE:
            begun = time.monotonic()
            read += os.preadv(descriptor, [buffer], read % SIZE)
            seconds = time.monotonic() - begun
        for _ in range(int(megabytes_per_second * 1e6 * HALF_SLICE_SECONDS) // READ_BYTES):
            read += os.preadv(descriptor, [buffer], read % SIZE)
    finally:
        os.close(descriptor)
