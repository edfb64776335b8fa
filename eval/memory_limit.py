"""Holds a process to an amount of memory with the kernel's memory controller (`cgroups`, version 1 or 2)."""

from __future__ import annotations

from pathlib import Path

MARGIN = 1 << 20
"""Bytes for what the kernel itself accounts to a process, such as its page tables."""


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
