"""Plans kept on disk: a process that starts cold does not plan anew what was planned before."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import sti_hf.planning
from sti_hf.planning import ExecutionPlan

MAX_PLANS = 256
"""Where more are kept, the older half is removed."""


def cached_plan(folder: Path, key: dict[str, Any], make_plan: Callable[[], ExecutionPlan]) -> ExecutionPlan:
    """The plan of `key` (JSON: everything that planning depends on) in `folder`, made and put there where absent.

    A cached plan that cannot be read is made again; a folder that cannot be written to is left alone.
    """
    text = json.dumps([key, _planner()], sort_keys=True)
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.json"
    try:
        return ExecutionPlan.from_json(path.read_text())
    except (OSError, ValueError):
        plan = make_plan()
    with suppress(OSError):
        _write(path, plan.to_json())
    return plan


def file_state(path: Path) -> list[Any]:
    """What changes when a file does: for a key."""
    try:
        state = path.stat()
    except FileNotFoundError:
        return [str(path), None]
    return [str(path.resolve()), state.st_size, state.st_mtime_ns]


def _planner() -> list[int]:
    """When the planner's code last changed: another release, or an edit, plans anew."""
    (folder,) = sti_hf.planning.__path__
    return [file.stat().st_mtime_ns for file in sorted(Path(folder).glob("*.py"))]


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = list(path.parent.glob("*.json"))
    if len(kept) >= MAX_PLANS:
        for old in sorted(kept, key=lambda file: file.stat().st_mtime)[: MAX_PLANS // 2]:
            old.unlink(missing_ok=True)
    # Not `write_whole`: its sync would stand before the first answer, and a lost plan is made again.
    unfinished = path.with_suffix(f".{os.getpid()}.tmp")
    unfinished.write_text(text)
    unfinished.replace(path)
