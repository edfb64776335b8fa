"""Who may read what is written: never more than could read what it was made from."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

EVERYBODY = 0o777
GROUP, OTHERS = 0o070, 0o007
READABLE, REACHABLE = 0o444, 0o111


def readers_of(files: Iterable[Path]) -> int:
    """A mask for modes: without the group, or the others, where they cannot read one of the files in its folder."""
    mask = EVERYBODY
    for file in files:
        mode, folder = file.stat().st_mode, file.parent.stat().st_mode
        for readers in (GROUP, OTHERS):
            if not (mode & readers & READABLE and folder & readers & REACHABLE):
                mask &= ~readers
    return mask


def restrict(path: Path, permissions: int) -> None:
    """Takes from a file or folder what is not in the mask; what the umask has taken already stays so."""
    mode = path.stat().st_mode & EVERYBODY
    if mode & ~permissions:
        os.chmod(path, mode & permissions)
