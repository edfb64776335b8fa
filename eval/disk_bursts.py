"""Another process that reads the same disk in bursts, past the page cache, as a backup or an update would.

python -m eval.disk_bursts FILE --busy 0.05 --idle 0.15
"""

from __future__ import annotations

import argparse
import mmap
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READ_BYTES = 1 << 19


@contextmanager
def disk_bursts(file: Path, busy: float, idle: float) -> Iterator[None]:
    """While the block runs, a child process reads `file` for about `busy` seconds, rests for about `idle`, and so on;
    none with `busy` 0. It belongs to the control groups of this process."""
    if busy <= 0:
        yield
        return
    command = [sys.executable, "-m", "eval.disk_bursts", str(file), "--busy", str(busy), "--idle", str(idle)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            if not child.stdout.readline():
                raise SystemExit(f"The process that reads {file} in bursts does not start.")
            yield
        finally:
            child.terminate()


def read_in_bursts(file: Path, busy: float, idle: float) -> None:
    """Reads until it is killed. Each burst and each rest is half to one and a half times as long as said, so that
    they fall on any part of an inference."""
    lengths = random.Random(0)
    descriptor = os.open(file, os.O_RDONLY | os.O_DIRECT)
    size = os.fstat(descriptor).st_size // READ_BYTES * READ_BYTES
    buffer = mmap.mmap(-1, READ_BYTES)
    offset = 0
    while True:
        end = time.monotonic() + busy * lengths.uniform(0.5, 1.5)
        while time.monotonic() < end:
            os.preadv(descriptor, [buffer], offset)
            offset = (offset + READ_BYTES) % size
        time.sleep(idle * lengths.uniform(0.5, 1.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--busy", type=float, required=True, metavar="SECONDS")
    parser.add_argument("--idle", type=float, required=True, metavar="SECONDS")
    arguments = parser.parse_args()
    print("reading", flush=True)
    read_in_bursts(arguments.file, arguments.busy, arguments.idle)


if __name__ == "__main__":
    main()
