"""A plan as plain text."""

from __future__ import annotations

from typing import TYPE_CHECKING

from sti_hf.shards.layout import FULL

if TYPE_CHECKING:
    from sti_hf.planning.plan import ExecutionPlan

BAR_WIDTH = 60


def summarize(plan: ExecutionPlan) -> str:
    """The grid of fidelities (layers down, slices across), and the predicted timeline of the layers that run."""
    n, m = plan.submodel
    layers, slices = plan.bits.shape
    head = [
        f"{plan.strategy}: {n} x {m} submodel of {layers} x {slices} ({why(plan)}), {plan.workload}",
        f"T {_ms(plan.target_latency)}, predicted {_ms(plan.predicted_latency)}"
        f"{'' if plan.feasible else ' (T cannot be met)'}, first answer {_ms(plan.first_latency)}",
        f"reads {_mb(plan.streamed_bytes)} an inference, preloaded {_mb(plan.preload_bytes)}, "
        f"staging buffer {_mb(plan.staging_bytes)}",
    ]
    legend = f"{FULL} bits: F, not run: ., preloaded: *, partly: +"
    return "\n".join([*head, "", *_grid(plan), legend, "", *_bars(plan), "reading: -, decompressing: d, computing: #"])


def why(plan: ExecutionPlan) -> str:
    """Why a plan runs its submodel."""
    if plan.is_whole:
        return "the whole model"
    if plan.accuracy is not None:
        return f"measured: {plan.accuracy:.3f}"
    return "not measured, asked for"


def missed_target(plan: ExecutionPlan) -> str:
    """One sentence on a plan that is not feasible: which T it misses, what runs, and how long that takes."""
    what = "the whole model" if plan.is_whole else f"a submodel of {plan.submodel[0]} x {plan.submodel[1]}"
    held = plan.is_whole and plan.submodels in ("measured", "none")
    rest = f", and submodels={plan.submodels!r} allows none that is faster" if held else ""
    return (
        f"No plan of {plan.workload} meets the target latency of {plan.target_latency * 1e3:.3g} ms: the fastest, "
        f"{what}, takes about {plan.predicted_latency * 1e3:.0f} ms{rest}."
    )


def _grid(plan: ExecutionPlan) -> list[str]:
    signs = {0: ".", FULL: "F"}
    # 0 where nothing of a shard is preloaded, 1 where some is, 2 where all is.
    kept = plan.preloaded_pieces.any(axis=1).astype(int) + plan.preloaded
    return [
        f"layer {layer:>3}  " + " ".join(signs.get(bits, str(bits)) + " +*"[share] for bits, share in zip(row, shares))
        for layer, (row, shares) in enumerate(zip(plan.bits.tolist(), kept.tolist()))
    ]


def _bars(plan: ExecutionPlan) -> list[str]:
    """A line a layer: its reads, then its compute, of which the first part stands for all decompression."""
    timeline = plan.timeline
    scale = BAR_WIDTH / max(timeline.end, plan.target_latency, 1e-9)
    lines = []
    for k, layer in enumerate(plan.layers):
        bar = [" "] * BAR_WIDTH
        computing = timeline.compute_start[k] + timeline.decompress[k]
        for sign, start, end in (
            ("-", timeline.io_start[k], timeline.io_end[k]),
            ("#", computing, timeline.compute_end[k]),
            ("d", timeline.compute_start[k], computing),
        ):
            if end > start:
                first = min(int(start * scale), BAR_WIDTH - 1)
                last = min(max(round(end * scale), first + 1), BAR_WIDTH)
                bar[first:last] = sign * (last - first)
        lines.append(f"layer {layer:>3}  |{''.join(bar)}|")
    return lines


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.1f} ms"


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f} MB"
