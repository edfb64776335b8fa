"""Control groups of the kernel, version 1 or 2, as root: they hold a process to a disk rate or an amount of memory."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")


@contextmanager
def control_group(controller: str, controller_v1: str | None = None) -> Iterator[Path]:
    """A group of a controller, empty and without limits, for processes to `join`; it must be empty again at the end.

    `controller_v1` is what version 1 calls it, if that differs. Raises `OSError` where the kernel or the rights of
    this process do not admit it.
    """
    parent = CGROUPS / (controller_v1 or controller)
    if not parent.is_dir():
        parent = CGROUPS
        (parent / "cgroup.subtree_control").write_text(f"+{controller}")
    group = parent / f"sti_eval_{controller}_{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        group.rmdir()


def join(group: Path) -> None:
    """Puts this process into the group: what it does from now on counts there."""
    (group / "cgroup.procs").write_text(str(os.getpid()))
