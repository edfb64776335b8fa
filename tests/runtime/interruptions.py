"""Exceptions that come from nowhere, as Ctrl-C, a full memory or a lack of descriptors do: at every line of a call."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import sti_hf

PACKAGE = str(Path(sti_hf.__file__).parent)

Line = tuple[str, int]


class Interruption(BaseException):
    """What is injected: nothing catches it by its class."""


def lines_of(call: Callable[[], Any]) -> list[Line]:
    """The lines of the package that a call executes in this thread, each once, in the order of their first time."""
    lines: dict[Line, None] = {}

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line":
            lines[frame.f_code.co_filename, frame.f_lineno] = None
        return trace

    _traced(call, trace)
    return list(lines)


def interrupted_at(line: Line, call: Callable[[], Any]) -> bool:
    """Calls, with an exception when `line` is first executed; returns whether it was."""

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(PACKAGE):
            return None
        if event == "line" and (frame.f_code.co_filename, frame.f_lineno) == line:
            raise Interruption
        return trace

    try:
        _traced(call, trace)
    except Interruption:
        return True
    return False


def _traced(call: Callable[[], Any], trace: Any) -> None:
    before = sys.gettrace()
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
