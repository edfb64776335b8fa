"""Metric against latency, from the JSON that `eval/run_glue.py` writes."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from sti_hf.errors import SourceError


@dataclass(frozen=True)
class Point:
    """One setting: its median latency when cold (seconds), its metric (points), what it was, and whether it keeps T
    (True for a baseline, which has none)."""

    latency: float
    metric: float
    what: str
    feasible: bool


@dataclass(frozen=True)
class Results:
    """The settings of one task, by line: a strategy, `sti` with its S. `metric` says what was measured, on what."""

    name: str
    metric: str
    lines: dict[str, list[Point]]


def read_results(path: Path) -> Results:
    """Reads results; raises `ValueError` with one sentence where the file has none."""
    try:
        content = json.loads(path.read_text())
        lines = defaultdict(list)
        for row in content["rows"]:
            setting = row["setting"]
            budget, fidelity, target = (setting[name] for name in ("preload_budget", "fidelity", "target"))
            line = setting["strategy"] + ("" if budget is None else f", S = {budget / 1e6:g} MB")
            what = f"{fidelity} bits" if target is None else f"T = {target * 1e3:.1f} ms"
            point = Point(float(row["cold_p50"]), float(row["accuracy"]["metric"]), what, row["feasible"] is not False)
            lines[line].append(point)
        metric = str(content["facts"]["metric"])
        if not all(math.isfinite(point.metric) for points in lines.values() for point in points) or not lines:
            raise SourceError("it has no rows, or a metric that is no number")
    except OSError as error:
        raise SourceError(f"The results {path} cannot be read: {error.strerror}.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise SourceError(f"{path} has no results of eval/run_glue.py: {error!r}; give the .json it wrote.") from error
    ordered = {name: sorted(points, key=lambda point: point.latency) for name, points in lines.items()}
    return Results(path.stem, metric, ordered)
