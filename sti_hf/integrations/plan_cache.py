"""Plans kept on disk: a process that starts cold does not plan anew what was planned before."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import sti_hf.planning
from sti_hf.integrations.cache_files import keep_file
from sti_hf.planning import ExecutionPlan

MAX_PLANS = 256
"""Where more are kept, the older half is removed."""


def cached_plan(folder: Path, key: dict[str, Any], make_plan: Callable[[], ExecutionPlan]) -> ExecutionPlan:
    """The plan of `key` (JSON: everything that planning depends on) in `folder`, made and put there where absent.

    Only a plan that was made for this key, and is whole, is taken: its file begins with a checksum of both.
    """
    text = json.dumps([key, _planner()], sort_keys=True)
    path = folder / f"{_checksum(text)[:32]}.json"
    try:
        plan = _read(path, text)
    except Exception:  # whatever it is: a plan can be made again
        plan = None
    if plan is None:
        plan = make_plan()
        content = plan.to_json()
        _remove_oldest(folder)
        keep_file(path, f"{_checksum(text, content)}\n{content}")
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


def _read(path: Path, key: str) -> ExecutionPlan | None:
    """The plan in a file, or None where there is none, or it is not that of this key, or not whole."""
    if not path.is_file():  # a pipe would not end
        return None
    checksum, _, content = path.read_text(encoding="utf-8").partition("\n")
    return ExecutionPlan.from_json(content) if checksum == _checksum(key, content) else None


def _checksum(*texts: str) -> str:
    return hashlib.sha256("\n".join(texts).encode()).hexdigest()


def _remove_oldest(folder: Path) -> None:
    """Where too many plans are kept, removes the older half."""
    with suppress(OSError):  # another process has removed one, or nobody may
        kept = sorted(folder.glob("*.json"), key=lambda file: file.stat().st_mtime)
        if len(kept) >= MAX_PLANS:
            for old in kept[: MAX_PLANS // 2]:
                old.unlink(missing_ok=True)
