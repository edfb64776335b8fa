"""Files and folders that are being written, under names of their own beside the final one.

Whoever writes holds a lock (`flock`) on what is being written. It ends with the process, however that ends, so what
has such a name and no lock was left behind by a process that was killed: the next write in that folder removes it.
Where the file system has no such locks, nothing is removed.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sti_hf.shards.permissions import EVERYBODY

SUFFIX = ".sti-unfinished"
NAME_CHARACTERS = 40
"""Of the final name: a file's name has at most 255 bytes."""


@contextmanager
def unfinished_folder(final: Path, permissions: int = EVERYBODY) -> Iterator[Path]:
    """A new folder beside `final`, with the modes that `permissions` and the umask leave; removed if not renamed."""
    remove_abandoned(final.parent)
    while True:
        folder = _new_name(final)
        folder.mkdir(EVERYBODY & permissions)
        lock = _locked(folder)
        if lock is not None:
            break
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(lock)


@contextmanager
def unfinished_file(final: Path) -> Iterator[Path]:
    """A new, empty file beside `final`, with the modes that the umask leaves; removed if not renamed."""
    remove_abandoned(final.parent)
    while True:
        file = _new_name(final)
        file.open("xb").close()
        lock = _locked(file)
        if lock is not None:
            break
    try:
        yield file
    finally:
        file.unlink(missing_ok=True)
        os.close(lock)


def remove_abandoned(folder: Path) -> None:
    """Removes what killed processes left unfinished in a folder."""
    with suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if entry.name.startswith(".") and entry.name.endswith(SUFFIX):
                _remove_if_abandoned(Path(entry.path))


def _new_name(final: Path) -> Path:
    return final.with_name(f".{final.name[:NAME_CHARACTERS]}.{secrets.token_hex(8)}{SUFFIX}")


def _locked(path: Path) -> int | None:
    """A descriptor that holds the lock of `path`, or None where another process has just removed it as abandoned."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    except FileNotFoundError:
        return None
    with suppress(OSError):  # a file system without locks: nobody gets one, so nobody removes it
        fcntl.flock(descriptor, fcntl.LOCK_EX)
    with suppress(FileNotFoundError):
        if os.path.samestat(os.fstat(descriptor), path.stat()):
            return descriptor
    os.close(descriptor)
    return None


def _remove_if_abandoned(path: Path) -> None:
    with suppress(OSError):  # it is locked, gone by now, or another user's
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink()
        finally:
            os.close(descriptor)
