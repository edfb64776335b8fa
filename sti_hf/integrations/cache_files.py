"""Files in the cache that can be made again: a cache that cannot be written to does not stop anybody."""

from __future__ import annotations

import fcntl
import os
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sti_hf.forking import ThreadsLock
from sti_hf.integrations.store_cache import cache_home
from sti_hf.shards.unfinished import unfinished_file

LONGEST_WAIT = 300.0
"""Seconds for another process. Measuring takes some, on a busy machine two minutes: who takes longer was stopped, or
has left the lock to a child."""

LOOK_EVERY = 0.05
"""Seconds: the kernel has no wait for a lock that ends."""

_warned_of: set[Path] = set()
_one_thread = ThreadsLock()


def keep_file(path: Path, content: str) -> bool:
    """Writes a file of the cache whole, or not at all; returns whether it is there.

    That the cache cannot be written to is one warning, the first time. The file is not synced to the disk, which would
    delay the first answer: whoever reads it must be able to tell that it is damaged, and make it again.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with suppress(OSError):
            path.rmdir()  # a file cannot take the place of a folder; one that is not empty stays
        with unfinished_file(path) as unfinished:
            unfinished.write_text(content, encoding="utf-8")
            unfinished.replace(path)
    except OSError as error:
        home = cache_home()
        if home not in _warned_of:
            _warned_of.add(home)
            warnings.warn(
                f"The cache {home} cannot be written to ({error.strerror or error}), so device profiles and plans are "
                "made again by every process: set STI_HOME to a folder that can be written to.",
                stacklevel=2,
            )
        return False
    return True


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Keeps all other threads and processes that ask for this folder waiting, until the end of the block.

    The lock is the folder's own (`flock`): it ends with the process. Where that cannot be had, only threads wait;
    where another process keeps it for longer than `LONGEST_WAIT`, the block runs beside it, with a warning.
    """
    with _one_thread:
        lock = _lock(folder)
        try:
            yield
        finally:
            if lock is not None:
                fcntl.flock(lock, fcntl.LOCK_UN)  # closing is not enough: a child process may have it open too
                os.close(lock)


def _lock(folder: Path) -> int | None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:
        return None
    try:
        if _wait_for(descriptor):
            return descriptor
        warnings.warn(f"Another process has kept {folder} locked for long; this one goes on beside it.", stacklevel=5)
    except OSError:
        pass
    except BaseException:  # interrupted while it waits
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def _wait_for(descriptor: int) -> bool:
    """Takes the lock of a folder, or returns False where another process does not give it up."""
    until = time.monotonic() + LONGEST_WAIT
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                return False
            time.sleep(LOOK_EVERY)
