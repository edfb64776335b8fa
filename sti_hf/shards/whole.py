"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import ctypes
import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sti_hf.errors import StoreExistsError
from sti_hf.shards.permissions import EVERYBODY, readers_of, restrict
from sti_hf.shards.unfinished import NAME_CHARACTERS, unfinished_file, unfinished_folder

_renameat2 = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)  # Linux with glibc 2.28 or musl 1.2.6
AT_FDCWD, RENAME_EXCHANGE = -100, 2
EXISTS = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR)


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, in place of the one that is there, for no more readers than that one has."""
    with unfinished_file(path) as written:
        if path.exists():
            restrict(written, readers_of([path]))
        with written.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        written.replace(path)


@contextmanager
def whole_or_absent(destination: Path, permissions: int = EVERYBODY) -> Iterator[Path]:
    """A folder to write to, which takes its final name when all of it is on disk.

    Modes are those that the umask gives, without what is not in `permissions`. Raises `FileExistsError` where there
    is something of that name already.
    """
    if os.path.lexists(destination) and (not destination.is_dir() or any(destination.iterdir())):
        raise _exists(destination)
    destination.parent.mkdir(parents=True, exist_ok=True)
    with unfinished_folder(destination, permissions) as folder:
        yield folder
        _finish(folder, permissions)
        try:
            os.replace(folder, destination)
        except OSError as error:
            raise _exists(destination) if error.errno in EXISTS else error from error
        _sync(destination.parent)


@contextmanager
def whole_or_unchanged(destination: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `destination` when all of it is on disk, in one step.

    Nobody can read the new folder who could not read the old one. Files that are open stay readable.
    """
    destination = destination.resolve()
    permissions = readers_of(file for file in destination.rglob("*") if file.is_file())
    with unfinished_folder(destination, permissions) as folder:
        yield folder
        _finish(folder, permissions)
        _exchange(folder, destination)
        _sync(destination.parent)


def _exists(destination: Path) -> StoreExistsError:
    return StoreExistsError(f"{destination} exists and is not empty; remove it or choose another name.")


def _exchange(folder: Path, destination: Path) -> None:
    """Swaps two folders, so that there is one of that name at every moment."""
    if _renameat2 is not None:
        names = os.fsencode(folder), os.fsencode(destination)
        if _renameat2(AT_FDCWD, names[0], AT_FDCWD, names[1], RENAME_EXCHANGE) == 0:
            return
    # The file system cannot swap: there is none of that name between two renames. The old one has a name that is not
    # taken for something abandoned, for a process that is killed here leaves nothing else.
    old = destination.with_name(f".{destination.name[:NAME_CHARACTERS]}.{secrets.token_hex(8)}.old")
    os.replace(destination, old)
    try:
        os.replace(folder, destination)
    except BaseException:
        os.replace(old, destination)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _finish(folder: Path, permissions: int) -> None:
    for path in folder.rglob("*"):
        restrict(path, permissions)
        _sync(path)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
