"""A report as the JSON that the page draws. Times are milliseconds, sizes bytes."""

from __future__ import annotations

from typing import Any

import numpy as np

from sti_hf.planning import ExecutionPlan, Workload
from sti_hf.planning.cost import DeviceProfile
from sti_hf.planning.importance_file import examples_of
from sti_hf.reporting.gather import Report
from sti_hf.reporting.importance import Importance
from sti_hf.reporting.plan_grid import PlanGrid
from sti_hf.reporting.results import Results
from sti_hf.reporting.runs import MeasuredRun
from sti_hf.reporting.spans import Lanes, measured_lanes, predicted_lanes
from sti_hf.shards.layout import PLANES
from sti_hf.shards.store import ShardStore

DECIMALS = 4


def content(report: Report) -> dict[str, Any]:
    """All that the page shows."""
    store, grid, device = report.store, report.grid, report.device
    workload = report.shown.workload
    return {
        "name": store.path.resolve().name,
        "model": store.index.model_type,
        "quantizer": store.index.quantizer,
        "layers": store.grid.layers,
        "slices": store.grid.slices,
        "bytes": sum(store.index.files.values()),
        "tokens": workload.tokens,
        "device": {
            "bytesPerSecond": round(device.bytes_per_second),
            "dtype": device.compute_dtype,
            "gemm": device.gemm,
        },
        "droppable": store.grid.droppable,
        "heads": np.array(store.stack.slice_order).tolist(),
        "importance": [_importance(each, store, device, workload) for each in report.importance],
        "plannedWith": report.planned_with,
        "latencies": [_ms(latency) for latency in grid.latencies],
        "budgets": list(grid.budgets),
        "plans": [[_plan(plan) for plan in row] for row in grid.plans],
        "shown": _place(grid, report.shown),
        "runs": [_run(grid, run) for run in report.runs],
        "results": [_results(each) for each in report.results],
    }


def _importance(
    importance: Importance, store: ShardStore, device: DeviceProfile, workload: Workload
) -> dict[str, Any]:
    facts = importance.facts
    return {
        "name": importance.name,
        "method": importance.method,
        "examples": examples_of(facts),
        "metric": facts.get("metric"),
        "worth": [[float(f"{value:.4g}") for value in row] for row in importance.worth.tolist()],
        "submodels": [
            {"layers": n, "slices": m, "metric": metric, "latency": _preloaded_ms(store, device, workload, n, m)}
            for (n, m), metric in sorted(importance.submodels.items())
        ],
    }


def _preloaded_ms(store: ShardStore, device: DeviceProfile, workload: Workload, depth: int, width: int) -> float:
    """What a forward of an n x m submodel takes that is in memory at 6 bits, the fidelity its metric is known for."""
    layer = device.layer_compute(workload, [PLANES] * width, store.grid.slice_weights)
    rows = device.embedding_seconds(workload.all_tokens, store.row_bytes, store.position_bytes(workload.tokens))
    return _ms(rows + device.before_layers(workload) + depth * layer + device.after_layers(workload))


def _plan(plan: ExecutionPlan) -> dict[str, Any]:
    return {
        "bits": plan.bits.tolist(),
        # 0 where nothing of a shard is preloaded, 1 where some is, 2 where all is.
        "preloaded": (plan.preloaded_pieces.any(axis=1).astype(int) + plan.preloaded).tolist(),
        "submodel": list(plan.submodel),
        "feasible": plan.feasible,
        "streamed": plan.streamed_bytes,
        "preload": plan.preload_bytes,
        "staging": plan.staging_bytes,
        "distortion": None if plan.distortion is None else float(f"{plan.distortion:.6g}"),
        "predicted": _lanes(predicted_lanes(plan)),
    }


def _run(grid: PlanGrid, run: MeasuredRun) -> dict[str, Any]:
    lanes = _lanes(measured_lanes(run.plan, run.timeline))
    return {**_place(grid, run.plan), "read": run.timeline.bytes_read, "measured": lanes}


def _place(grid: PlanGrid, plan: ExecutionPlan) -> dict[str, int]:
    return {"t": grid.latencies.index(plan.target_latency), "s": grid.budgets.index(plan.preload_budget)}


def _lanes(lanes: Lanes) -> dict[str, Any]:
    """Spans as [kind, layer, start, end]."""
    spans = {
        name: [[span.kind, span.layer, _ms(span.start), _ms(span.end)] for span in getattr(lanes, name)]
        for name in ("disk", "processor")
    }
    return {**spans, "end": _ms(lanes.end)}


def _results(results: Results) -> dict[str, Any]:
    lines = {
        name: [
            {"latency": _ms(point.latency), "metric": point.metric, "what": point.what, "feasible": point.feasible}
            for point in points
        ]
        for name, points in results.lines.items()
    }
    return {"name": results.name, "metric": results.metric, "lines": lines}


def _ms(seconds: float) -> float:
    return round(seconds * 1e3, DECIMALS)
