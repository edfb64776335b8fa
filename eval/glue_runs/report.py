"""The rows of one task as tables for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from eval.glue_runs.checks import Check, best_valid, full_row, highest_valid, sti_rows
from eval.glue_runs.row import Row
from eval.markdown import signed, table

VERDICTS = {True: "true", False: "**false**", None: "–"}
HEAD = (
    "strategy",
    "T",
    "S",
    "plan keeps T",
    "n × m",
    "bits, mean",
    "shards by bits",
    "predicted",
    "cold p50",
    "p95",
    "back to back p50",
    "p95",
    "read",
    "of it rows",
    "peak weights",
    "metric",
    "agreement",
)
EQUAL_HEAD = (
    "T",
    "S",
    "sti",
    "std_pipeline, highest valid",
    "sti over it",
    "best valid in hindsight",
    "sti over it",
    "load_exec, highest valid",
    "sti over the full model",
)


def markdown(title: str, facts: Mapping[str, str], rows: Sequence[Row], checks: Sequence[Check]) -> str:
    """One task's report: how it ran, every setting, what `sti` has at equal T, and the claims."""
    targets = sorted({row.setting.target for row in rows if row.setting.target is not None})
    return "\n\n".join(
        [
            f"# {title}",
            "\n".join(f"- {name}: {value}" for name, value in facts.items()),
            "Times in ms, sizes in MB (10^6), metric in points, agreement with the full model in per cent.",
            table(HEAD, (_cells(row, targets) for row in rows)),
            "## At equal T",
            table(*_equal_targets(rows)),
            "## Claims",
            table(
                ("claim", "holds", "figures"),
                ((check.claim, VERDICTS[check.holds], check.figures) for check in checks),
            ),
        ]
    )


def _cells(row: Row, targets: Sequence[float]) -> list[str]:
    setting, accuracy = row.setting, row.accuracy
    cold, later = ([_ms(np.percentile(seconds, p)) for p in (50, 95)] for seconds in (row.cold, row.back_to_back))
    return [
        setting.strategy if setting.fidelity is None else f"{setting.strategy}, {setting.fidelity} bits",
        "any" if setting.target is None else _ms(setting.target),
        "–" if setting.preload_budget is None else f"{setting.preload_budget / 1e6:g}",
        _kept(row, targets),
        f"{row.submodel[0]} × {row.submodel[1]}",
        f"{row.mean_bits:.2f}",
        ", ".join(f"{bits}: {count}" for bits, count in row.fidelity_counts.items()),
        _ms(row.predicted),
        *cold,
        *later,
        f"{(row.bytes_read + row.row_bytes_read) / 1e6:.2f}" + ("" if row.as_planned else " (not as planned)"),
        f"{row.row_bytes_read / 1e6:.2f}",
        f"{row.memory['peak'] / 1e6:.1f}",
        ", ".join(f"{value:.1f}" for value in accuracy.metrics.values()),
        "–" if accuracy.agreement is None else f"{accuracy.agreement:.1f}",
    ]


def _kept(row: Row, targets: Sequence[float]) -> str:
    if row.feasible is not None:
        return "yes" if row.feasible else "no"
    kept = [target for target in targets if row.keeps(target)]
    return f"from {_ms(kept[0])}" if kept else "none"


def _equal_targets(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """Head and cells: `sti` at each T and S, beside the best that others have at that T."""
    full = full_row(rows, "preload")
    cells = []
    for row in sorted(sti_rows(rows), key=lambda row: row.setting.target or 0):
        target, budget = row.setting.target or 0, row.setting.preload_budget or 0
        highest, best = (choose(rows, "std_pipeline", target) for choose in (highest_valid, best_valid))
        cells.append(
            [
                _ms(target),
                f"{budget / 1e6:g}",
                f"{row.metric:.1f}" + ("" if row.feasible else " (misses T)"),
                _valid(highest),
                _over(row, highest),
                _valid(best),
                _over(row, best),
                _valid(highest_valid(rows, "load_exec", target)),
                _over(row, full),
            ]
        )
    return list(EQUAL_HEAD), cells


def _over(row: Row, other: Row | None) -> str:
    return "–" if other is None else signed(row.metric - other.metric)


def _valid(row: Row | None) -> str:
    return "none" if row is None else f"{row.metric:.1f} ({row.setting.fidelity} bits)"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f}"
