"""Where the time of a call goes, as a tree of calls: what a flame graph shows, as text."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType, FrameType
from typing import Any


@dataclass
class Node:
    """A function as called along one path: seconds in it and in what it called, and how often."""

    name: str
    seconds: float = 0.0
    calls: int = 0
    children: dict[object, Node] = field(default_factory=dict)

    def lines(self, threshold: float, depth: int = 0) -> list[str]:
        """This node and those below it that took at least `threshold` seconds, the longest first."""
        lines = [f"{self.seconds * 1e3:9.2f} ms {self.calls:6} ×  {'  ' * depth}{self.name}"]
        for child in sorted(self.children.values(), key=lambda node: -node.seconds):
            if child.seconds >= threshold:
                lines += child.lines(threshold, depth + 1)
        return lines


class Tracer:
    """Builds the tree of this thread's calls while `run` runs. Tracing makes each call about a microsecond longer."""

    def __init__(self) -> None:
        self.root = Node("in all")
        self._stack: list[tuple[Node, float]] = []

    def run(self, call: Callable[[], Any]) -> Any:
        """Calls it."""
        begun = time.perf_counter()
        self._stack = [(self.root, begun)]
        sys.setprofile(self._event)
        try:
            return call()
        finally:
            sys.setprofile(None)
            self.root.seconds += time.perf_counter() - begun
            self.root.calls += 1

    def _event(self, frame: FrameType, event: str, argument: Any) -> None:
        if event in ("call", "c_call"):
            parent = self._stack[-1][0]
            key = frame.f_code if event == "call" else getattr(argument, "__qualname__", str(argument))
            if key not in parent.children:
                parent.children[key] = Node(_name(key) if isinstance(key, CodeType) else f"{key} (C)")
            self._stack.append((parent.children[key], time.perf_counter()))
        elif len(self._stack) > 1:
            node, begun = self._stack.pop()
            node.seconds += time.perf_counter() - begun
            node.calls += 1


def _name(code: CodeType) -> str:
    path = Path(code.co_filename)
    return f"{code.co_qualname}  {path.parent.name}/{path.name}:{code.co_firstlineno}"
