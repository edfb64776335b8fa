"""Tables in Markdown."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; every row has a cell for each column of the head."""
    lines = [_line(head), _line(["---"] * len(head)), *map(_line, rows)]
    return "\n".join(lines)


def bullets(facts: Mapping[str, object]) -> str:
    """A list of facts by name."""
    return "\n".join(f"- {name}: {value}" for name, value in facts.items())


def signed(value: float) -> str:
    """A difference in points."""
    return f"{value:+.1f}".replace("-", "−").replace("+0.0", "0.0").replace("−0.0", "0.0")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"
