"""The rows of one task as a picture: metric against latency and against memory, a line for every strategy."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from eval.glue_runs.row import Row

MARKERS = {"sti": "o", "std_pipeline": "s", "load_exec": "^", "preload": "D"}


def plot(title: str, metric: str, rows: Sequence[Row], path: Path) -> None:
    """Draws it into the file `path`, in the format that its name ends with. Lines run from the shortest T, or from
    the fewest bits, up. Hollow: the plan misses its T.
    """
    from matplotlib.figure import Figure

    lines = defaultdict(list)
    for row in rows:
        budget = row.setting.preload_budget
        lines[row.setting.strategy + ("" if budget is None else f", S = {budget / 1e6:g} MB")].append(row)
    figure = Figure(figsize=(12, 5), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    for name, of_line in lines.items():
        _draw(left, name, of_line, lambda row: row.cold_p50 * 1e3)
        _draw(right, name, of_line, lambda row: row.memory["peak"] / 1e6)
    _scale(left, "cold latency, median (ms)")
    _scale(right, "peak weight memory (MB)")
    left.set_ylabel(f"{metric} (points)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=len(lines), fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _draw(panel: Any, name: str, rows: Sequence[Row], x: Callable[[Row], float]) -> None:
    marker = MARKERS[rows[0].setting.strategy]
    (line,) = panel.plot([x(row) for row in rows], [row.metric for row in rows], label=name)
    for row in rows:
        face = "none" if row.feasible is False else line.get_color()
        panel.plot(x(row), row.metric, marker, color=line.get_color(), markerfacecolor=face)


def _scale(panel: Any, label: str) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter

    panel.set(xlabel=label, xscale="log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panel.xaxis.set_major_formatter("{x:g}")
    panel.xaxis.set_minor_formatter(NullFormatter())
    panel.grid(alpha=0.3)
