"""Plans and runs, drawn in the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from sti_hf.planning import ExecutionPlan
from sti_hf.runtime.session import STISession

STYLES = {
    0: "grey50",
    2: "white on dark_red",
    3: "black on dark_orange3",
    4: "black on gold3",
    5: "black on dark_sea_green4",
    6: "black on green3",
    32: "white on dodger_blue3",
}
BAR_WIDTH = 60


def draw_plan(console: Console, plan: ExecutionPlan) -> None:
    """The grid of fidelities, layers down and slices across, and the predicted timeline."""
    n, m = plan.submodel
    console.print(
        f"{plan.strategy}: {n} x {m} submodel, {plan.seq_len} tokens, T {plan.target_latency * 1e3:.0f} ms, "
        f"predicted {plan.predicted_latency * 1e3:.1f} ms"
        + ("" if plan.feasible else " (T cannot be met: this is the smallest plan)")
    )
    console.print(
        f"reads {plan.streamed_bytes / 1e6:.2f} MB an inference, keeps {plan.preload_bytes / 1e6:.2f} MB preloaded, "
        f"staging buffer {plan.staging_bytes / 1e6:.2f} MB\n"
    )
    draw_grid(console, plan)
    console.print()
    draw_timeline(console, plan)


def draw_grid(console: Console, plan: ExecutionPlan) -> None:
    """One line a layer, one cell a slice: its bits, coloured; * marks shards that are preloaded."""
    for layer, (bits, preloaded) in enumerate(zip(plan.bits, plan.preloaded)):
        line = Text(f"layer {layer:>2} ")
        for fidelity, kept in zip(bits.tolist(), preloaded.tolist()):
            cell = f"{fidelity or '.':>2}{'*' if kept else ' '}"
            line.append(cell, style=STYLES[fidelity])
        console.print(line)
    legend = Text("bits     ")
    for fidelity in sorted(set(plan.bits.ravel().tolist())):
        legend.append(f" {fidelity or 'not run'} ", style=STYLES[fidelity])
    console.print(legend.append("  * preloaded"))


def draw_timeline(console: Console, plan: ExecutionPlan) -> None:
    """Predicted reads (=) and compute (#) of every executed layer, on one scale of time."""
    end = max(plan.predicted_latency, plan.target_latency)
    scale = BAR_WIDTH / end
    target = round(plan.target_latency * scale)
    timeline = plan.timeline
    columns = (timeline.io_start, timeline.io_end, timeline.compute_start, timeline.compute_end)
    for layer, *spans in zip(plan.layers, *(np.asarray(column).tolist() for column in columns)):
        line = Text(f"layer {layer:>2} ")
        line.append(_bar(spans[0], spans[1], scale, "="), style="cyan")
        line.append("\n         ")
        line.append(_bar(spans[2], spans[3], scale, "#"), style="green")
        console.print(line)
    console.print(" " * (9 + target) + f"^ T = {plan.target_latency * 1e3:.0f} ms   (= reading, # computing)")


def _bar(start: float, end: float, scale: float, mark: str) -> str:
    first = round(start * scale)
    return " " * first + mark * max(1, round(end * scale) - first) if end > start else ""


def draw_run(console: Console, task: str, answers: Sequence[dict[str, Any]], session: STISession) -> None:
    """Each text's answer and what it took."""
    for answer in answers:
        output = answer["output"]
        if task == "feature-extraction":
            shown = f"embedding of {len(output)} values, first {', '.join(f'{value:.4f}' for value in output[:4])}"
        else:
            shown = "; ".join(f"{one.get('label', one.get('token_str', ''))} {one['score']:.4f}" for one in output[:3])
        console.print(f"{shown}  ({answer['seconds'] * 1e3:.0f} ms, {answer['bytes_read'] / 1e6:.2f} MB read)")
    sizes = session.memory()
    console.print("memory: " + ", ".join(f"{name} {size / 1e6:.1f} MB" for name, size in sizes.items()))
