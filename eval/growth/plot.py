"""The measurements as a picture: latency against each size, above; how well T was kept, below."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from eval.cold_forwards import LATE

Rows = Mapping[str, Sequence[Mapping[str, Any]]]
"""By what grows ("tokens", "batch", "layers", "width"; more may follow behind a comma), the rows of its points."""


def plot(title: str, rows: Rows, path: Path) -> None:
    """Draws it into the file `path`, in the format that its name ends with. Hollow: the plan misses its T."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(rows), 7), layout="constrained")
    panels = figure.subplots(2, len(rows), sharex="col", squeeze=False)
    for column, (growing, points) in enumerate(rows.items()):
        field = growing.partition(",")[0]
        _latency(panels[0][column], field, points)
        _kept(panels[1][column], field, points)
        panels[0][column].set_title(growing)
    panels[0][0].set_ylabel("milliseconds")
    panels[1][0].set_ylabel("median latency / T")
    figure.legend(*panels[0][0].get_legend_handles_labels(), loc="outside lower center", ncols=5, fontsize="small")
    figure.suptitle(title)
    figure.savefig(path, dpi=150)


def _latency(panel: Any, growing: str, points: Sequence[Mapping[str, Any]]) -> None:
    for factor, of_factor in _by_factor(points).items():
        x = [row[growing] for row in of_factor]
        (line,) = panel.plot(x, [row["predicted_ms"] for row in of_factor], label=f"predicted, T × {factor:g}")
        for row in of_factor:
            face = line.get_color() if row["feasible"] else "none"
            panel.plot(row[growing], row["median_ms"], "o", color=line.get_color(), markerfacecolor=face)
        panel.plot(
            x, [row["ttfa_ms"] for row in of_factor], ":", color=line.get_color(), label=f"TTFA, T × {factor:g}"
        )
    first = next(iter(_by_factor(points).values()))
    panel.plot(
        [row[growing] for row in first], [row["stock_ms"] for row in first], "k--", label="Transformers fp32, warm"
    )
    panel.set(xscale="log", yscale="log")
    panel.grid(alpha=0.3)


def _kept(panel: Any, growing: str, points: Sequence[Mapping[str, Any]]) -> None:
    for of_factor in _by_factor(points).values():
        x = [row[growing] for row in of_factor]
        panel.plot(x, [row["median_ms"] / row["target_ms"] for row in of_factor], "o-")
    panel.axhline(LATE, color="black", linewidth=0.8, linestyle="--")
    panel.set(xlabel=growing, xscale="log", xticks=x, xticklabels=x)
    panel.minorticks_off()
    panel.grid(alpha=0.3)


def _by_factor(points: Sequence[Mapping[str, Any]]) -> dict[float, list[Mapping[str, Any]]]:
    return {
        factor: [row for row in points if row["factor"] == factor] for factor in {row["factor"]: 0 for row in points}
    }
