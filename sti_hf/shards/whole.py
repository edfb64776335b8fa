"""Files and folders that are written whole or not at all."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sti_hf.errors import StoreExistsError


def write_whole(path: Path, content: bytes) -> None:
    """Writes a file whole or not at all, in place of the one that is there."""
    written = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with written.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        written.replace(path)
    finally:
        written.unlink(missing_ok=True)


@contextmanager
def whole_or_absent(destination: Path) -> Iterator[Path]:
    """A folder to write to, which takes its final name when all of it is on disk.

    Raises `FileExistsError` where there is something of that name already.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise StoreExistsError(f"{destination} exists and is not empty; remove it or choose another name.")
    destination.parent.mkdir(parents=True, exist_ok=True)
    with _written_folder(destination) as folder:
        yield folder
        _sync_all(folder)
        os.replace(folder, destination)
        _sync(destination.parent)


@contextmanager
def whole_or_unchanged(destination: Path) -> Iterator[Path]:
    """A folder to write to, which takes the place of `destination` when all of it is on disk.

    The old folder is put aside for the moment between two renames, and put back if the second fails. Files that are
    open stay readable.
    """
    destination = destination.resolve()
    with _written_folder(destination) as folder:
        yield folder
        _sync_all(folder)
        old = Path(tempfile.mkdtemp(prefix=f".{destination.name}.old.", dir=destination.parent))
        os.replace(destination, old)
        try:
            os.replace(folder, destination)
        except BaseException:
            os.replace(old, destination)
            raise
        _sync(destination.parent)
        shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _written_folder(destination: Path) -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    try:
        folder.chmod(0o755)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _sync_all(folder: Path) -> None:
    for file in folder.rglob("*"):
        file.chmod(file.stat().st_mode | 0o444)
        _sync(file)
    _sync(folder)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
