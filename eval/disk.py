"""Holds this process to a disk rate, and empties caches: what makes a benchmark cold."""

from __future__ import annotations

import argparse
import ctypes
import mmap
import os
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from eval.cgroups import control_group, join

EMULATED = "EMULATED in the streamer"
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


def add_rate_option(parser: argparse.ArgumentParser) -> None:
    """Adds `--disk-rate`, in MB/s, and `--emulate`."""
    parser.add_argument("--disk-rate", type=float, metavar="MB/S", help="hold the disk to this rate (default: none)")
    parser.add_argument("--emulate", action="store_true", help="emulate the rate in the streamer, evenly, in any case")


@contextmanager
def disk_rate(folder: Path, megabytes_per_second: float | None, emulate: bool = False) -> Iterator[str]:
    """Holds this process's reads from the disk of `folder` to a rate; yields how it is held.

    As root the kernel's blkio controller does it (cgroup v1 or v2), for any program alike; it works in slices of
    100 ms, each of which it lets through at once. Where the kernel cannot, or with `emulate`, the streamer emulates
    the rate, and the text yielded says so.
    """
    if megabytes_per_second is None:
        yield "unlimited"
        return
    rate = int(megabytes_per_second * 1e6)
    with ExitStack() as stack:
        how = None if emulate else _enter_throttled(stack, folder, rate)
        if how is None:
            how = EMULATED
            os.environ["STI_READ_RATE"] = str(rate)
            stack.callback(os.environ.pop, "STI_READ_RATE")
        yield f"{megabytes_per_second:.0f} MB/s, {how}"


def _enter_throttled(stack: ExitStack, folder: Path, rate: int) -> str | None:
    try:
        return stack.enter_context(_throttled(folder, rate))
    except OSError as error:
        print(f"the kernel cannot limit the rate here ({error}): the streamer emulates it", file=sys.stderr)
        return None


@contextmanager
def _throttled(folder: Path, rate: int) -> Iterator[str]:
    """This process in a cgroup whose reads from the disk of `folder` are throttled."""
    device = _disk(folder)
    with control_group("io", "blkio") as group:
        limit_v1 = group / "blkio.throttle.read_bps_device"
        first = limit_v1.exists()
        if first:
            limit_v1.write_text(f"{device} {rate}")
        else:
            (group / "io.max").write_text(f"{device} rbps={rate}")
        join(group)
        try:
            yield "blkio throttle" if first else "io.max"
        finally:
            join(group.parent)


def _disk(folder: Path) -> str:
    """`major:minor` of the whole disk that holds `folder`."""
    number = folder.stat().st_dev
    entry = Path(f"/sys/dev/block/{os.major(number)}:{os.minor(number)}").resolve()
    disk = entry.parent if (entry / "partition").exists() else entry
    return (disk / "dev").read_text().strip()


def evict(*paths: Path) -> None:
    """Takes files, or all files of folders, out of the page cache, written to the disk first."""
    for file in _files(paths):
        with file.open("rb") as opened:
            os.fsync(opened.fileno())
            os.posix_fadvise(opened.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def drop_caches() -> None:
    """Takes everything out of the page cache that no process has mapped. Raises `PermissionError` unless root."""
    os.sync()
    DROP_CACHES.write_text("3")


def cached_bytes(*paths: Path) -> int:
    """How many bytes of files, or of all files of folders, are in the page cache."""
    return sum(map(_cached, _files(paths)))


def _files(paths: tuple[Path, ...]) -> list[Path]:
    found = [file for path in paths for file in (path.rglob("*") if path.is_dir() else [path])]
    return [file for file in found if file.is_file()]


def _cached(file: Path) -> int:
    size = file.stat().st_size
    if size == 0:
        return 0
    access = (
        mmap.PROT_READ | mmap.PROT_WRITE
    )  # of a private mapping: ctypes gives the address of writable memory alone
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), size, mmap.MAP_PRIVATE, access) as mapped:
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        first = ctypes.c_ubyte.from_buffer(mapped)
        failed = ctypes.CDLL(None, use_errno=True).mincore(ctypes.byref(first), ctypes.c_size_t(size), pages)
        del first
    if failed:
        raise OSError(ctypes.get_errno(), f"mincore failed on {file}")
    return sum(page & 1 for page in pages) * mmap.PAGESIZE
