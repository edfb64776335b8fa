"""Holds a process to an amount of memory with the kernel's memory controller (cgroup v1 or v2, as root)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from eval.disk import CGROUPS

MARGIN = 1 << 20
"""Bytes for what the kernel itself accounts to a process, such as its page tables."""


@contextmanager
def memory_group() -> Iterator[Path]:
    """A memory cgroup, empty and without a limit, for one process to `join`. Raises `OSError` unless root."""
    first = (CGROUPS / "memory").is_dir()
    parent = CGROUPS / "memory" if first else CGROUPS
    if not first:
        (parent / "cgroup.subtree_control").write_text("+memory")
    group = parent / f"sti_eval_memory_{os.getpid()}"
    group.mkdir()
    try:
        yield group
    finally:
        group.rmdir()


def join(group: Path) -> None:
    """Puts this process into the group: what it allocates from now on counts."""
    (group / "cgroup.procs").write_text(str(os.getpid()))


def limit(group: Path, extra: int) -> None:
    """Limits a group to the anonymous memory that it has and `extra` bytes.

    What it maps or caches of files counts too, but the kernel can take it back; over the limit it kills the process.
    """
    first = (group / "memory.limit_in_bytes").exists()
    values = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
    size = int(values["total_rss" if first else "anon"]) + extra + MARGIN
    if first:
        (group / "memory.force_empty").write_text("0")
    (group / ("memory.limit_in_bytes" if first else "memory.max")).write_text(str(size))
