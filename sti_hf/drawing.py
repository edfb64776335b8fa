"""Plans and runs, drawn in the terminal."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.text import Text

from sti_hf.planning import ExecutionPlan
from sti_hf.planning.summary import why
from sti_hf.runtime.session import STISession
from sti_hf.shards.layout import FULL

PIPED_COLUMNS = 100
LEAST_BAR = 30
MOST_TICKS = 6
GAP = "  "

STYLES = {
    0: "grey50",
    2: "white on dark_red",
    3: "black on dark_orange3",
    4: "black on gold3",
    5: "black on dark_sea_green4",
    6: "black on green3",
    FULL: "white on dodger_blue3",
}
NOT_RUN = "·"
READING, DECOMPRESSING, COMPUTING, TARGET = "░▒█┊"
SIGNS = {READING: "bright_cyan", DECOMPRESSING: "bright_yellow", COMPUTING: "green", TARGET: "bright_red"}
ASCII = str.maketrans("·░▒█┊─┴×", ".-d#|-+x")
"""For terminals and files that cannot show the others."""

FIRST, LAST = "words", "the rest"
"""Rows of the timeline before and after the layers: reading word embeddings, and what is computed of them or of
images; the head and all else."""

Span = tuple[str, float, float]
"""A sign, and from when to when it stands: seconds from the start of the forward."""


def terminal() -> Console:
    """Where a person reads, `PIPED_COLUMNS` wide where neither a terminal nor `$COLUMNS` says otherwise."""
    console = Console(highlight=False, markup=False, emoji=False, soft_wrap=True)
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = PIPED_COLUMNS
    return console


def draw_plan(console: Console, plan: ExecutionPlan) -> None:
    """What runs and what it costs; then the grid of fidelities and, beside it, the predicted timeline."""
    layers, slices = plan.bits.shape
    n, m = plan.submodel
    how = f"{plan.strategy}, {plan.allocator}" if plan.allocator else plan.strategy
    _print(console, Text(f"{n} × {m} of {layers} × {slices} shards, {plan.workload} ({how})", style="bold"))
    _print(console, f"submodel {why(plan)}")
    if not plan.feasible:
        missed = "No plan keeps T: this is the fastest." if plan.strategy == "sti" else "This plan does not keep T."
        _print(console, Text(missed, style="bright_red"))
    _print(
        console,
        f"latency  {_ms(plan.predicted_latency)} predicted, T = {_ms(plan.target_latency)}; "
        f"the first time {_ms(plan.first_latency)}",
        f"reading  {_mb(plan.streamed_bytes)} an inference, through a staging buffer of {_mb(plan.staging_bytes)}",
        f"preload  {_mb(plan.preload_bytes)} of S = {_mb(plan.preload_budget)}",
        "",
    )
    _draw_layers(console, plan)


def _draw_layers(console: Console, plan: ExecutionPlan) -> None:
    """A line a layer: its shards and its times, side by side where both fit, else one block below the other."""
    labels = _labels(plan)
    slices = plan.bits.shape[1]
    indent = max(map(len, (FIRST, LAST, *labels))) + 1
    room = console.width - indent
    beside = next((size for size in (3, 2, 1) if slices * size + len(GAP) + LEAST_BAR <= room), None)
    size = beside or next((size for size in (3, 2) if slices * size <= room), 1)
    grid = {label: cells + Text(GAP) for label, cells in zip(labels, _cells(plan, size))}
    empty = Text(" " * (slices * size + len(GAP)))
    if not beside:
        _print(console, *(Text(label.ljust(indent)) + cells for label, cells in grid.items()))
        _print(console, _bits_legend(plan, size), "")
        grid, empty = {}, Text()
    for label, bar in _timeline(plan, room - len(empty)):
        _print(console, Text(label.ljust(indent)) + grid.get(label, empty) + bar)
    if beside:
        _print(console, _bits_legend(plan, size))
    _print(console, _signs_legend(plan, size), f"{FIRST}: their embeddings; {LAST}: all else outside the layers")


def _labels(plan: ExecutionPlan) -> list[str]:
    return [f"layer {layer:>{len(str(len(plan.bits) - 1))}}" for layer in range(len(plan.bits))]


def _cells(plan: ExecutionPlan, size: int) -> Iterator[Text]:
    """Each layer's shards, `size` columns a shard: its bits, and what of it is preloaded if there is room for that."""
    share = plan.preloaded_pieces.any(axis=1).astype(int) + plan.preloaded
    for row, shares in zip(plan.bits.tolist(), share.tolist()):
        line = Text()
        for bits, preloaded in zip(row, shares):
            if size == 1:
                line.append(_sign(bits, size), STYLES[bits] + " underline" * (preloaded > 0))
            else:
                line.append(f"{_sign(bits, size):>{size - 1}}{' +*'[preloaded]}", STYLES[bits])
        yield line


def _sign(bits: int, size: int) -> str:
    return "F" if bits == FULL and size < 3 else str(bits or NOT_RUN)


def _bits_legend(plan: ExecutionPlan, size: int) -> Text:
    """How many shards there are at each fidelity."""
    legend = Text("bits")
    for bits, count in plan.fidelity_counts().items():
        legend.append(" ").append(f" {_sign(bits, size)} ", STYLES[bits]).append(f" ×{count}")
    if not plan.bits.all():
        legend.append(f"  {NOT_RUN}  ×{(plan.bits == 0).sum()} not run")
    return legend


def _signs_legend(plan: ExecutionPlan, size: int) -> Text:
    legend = Text()
    if plan.preloaded_pieces.any():
        legend.append("* preloaded  + partly   " if size > 1 else "underlined: preloaded   ")
    for sign, what in ((READING, "reading"), (DECOMPRESSING, "decompressing"), (COMPUTING, "computing")):
        legend.append(sign, SIGNS[sign]).append(f" {what}  ")
    return legend


def _timeline(plan: ExecutionPlan, width: int) -> Iterator[tuple[str, Text]]:
    """Lines of the predicted timeline, with their labels: T above, a bar a layer, the scale of time below."""
    scale = (width - 1) / max(plan.timeline.end, plan.target_latency)
    target = round(plan.target_latency * scale)
    name = f"T = {_ms(plan.target_latency)}"
    yield "", Text(" " * max(target - len(name) + 1, 0)).append(name, SIGNS[TARGET])
    spans = _spans(plan)
    for label in (FIRST, *_labels(plan), LAST):
        yield label, _bar(spans.get(label, []), scale, target, width)
    yield from (("", line) for line in _axis(scale, width))


def _spans(plan: ExecutionPlan) -> dict[str, list[Span]]:
    """What the predicted timeline shows in each row."""
    timeline = plan.timeline
    labels = _labels(plan)
    spans: dict[str, list[Span]] = {
        FIRST: [
            (READING, 0.0, float(timeline.io_start[0])),
            (COMPUTING, float(timeline.io_start[0]), timeline.ready),
        ],
        LAST: [(COMPUTING, float(timeline.compute_end[-1]), timeline.end)],
    }
    for k, layer in enumerate(plan.layers):
        start, end = float(timeline.compute_start[k]), float(timeline.compute_end[k])
        spans[labels[layer]] = [
            (READING, float(timeline.io_start[k]), float(timeline.io_end[k])),
            (DECOMPRESSING, start, end),
            (COMPUTING, start + float(timeline.decompress[k]), end),
        ]
    return spans


def _bar(spans: Sequence[Span], scale: float, target: int, width: int) -> Text:
    """One row of the timeline. Reading and computing always show, decompressing where it fills a column."""
    signs = np.full(width, " ")
    signs[target] = TARGET
    for sign, start, end in spans:
        if end > start:
            last, least = max(round(end * scale), 1), 0 if sign == DECOMPRESSING else 1
            signs[min(round(start * scale), last - least) : last] = sign
    bar = Text()
    for sign in signs.tolist():
        bar.append(sign, SIGNS.get(sign))
    return bar


def _axis(scale: float, width: int) -> tuple[Text, Text]:
    """The scale of time: a line with ticks at round numbers of milliseconds, and these numbers."""
    least = width / scale / MOST_TICKS
    power = 10.0 ** math.floor(math.log10(least))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= least * 0.999)
    line, numbers = ["─"] * width, "0 ms"
    for tick in range(int((width - 1) / scale / step) + 1):
        column = round(tick * step * scale)
        line[column] = "┴"
        number = f"{tick * step * 1e3:g}"
        if tick and column + len(number) <= width:
            numbers = f"{numbers:<{column}}{number}"
    return Text("".join(line)), Text(numbers)


def draw_text(console: Console, text: str) -> None:
    """A text that is answered next."""
    _print(console, Text(text, style="bold"))


def draw_answer(console: Console, task: str, answer: dict[str, Any]) -> None:
    """What a model says of a text, unless it has written that, and what it took."""
    took = f"{_ms(answer['seconds'])}, {_mb(answer['bytes_read'])} read"
    if "time_to_first_token" not in answer:
        _print(console, *(f"  {line}" for line in _answer(task, answer["output"])))
    else:
        each = f", then {_ms(answer['token_seconds'])} a token" if answer["token_seconds"] else ""
        took = f"first token after {_ms(answer['time_to_first_token'])}{each}; {took}"
    _print(console, Text(f"  {took}", style="dim"))


def draw_memory(console: Console, session: STISession) -> None:
    """The memory that the weights take."""
    sizes = session.memory()
    _print(console, "memory: " + ", ".join(f"{name} {_mb(size)}" for name, size in sizes.items()))


def _answer(task: str, output: list[Any]) -> list[str]:
    if task == "feature-extraction":
        return [f"embedding of {len(output)} values: {', '.join(f'{value:.4f}' for value in output[:4])}, ..."]
    if task == "token-classification":
        return [f"{one['word']}: {one['entity']} {one['score']:.4f}" for one in output] or ["nothing found"]
    # A masked language model gives, for several masked words, a list for each.
    groups = output if isinstance(output[0], list) else [output]
    names = ("label", "token_str")
    return [", ".join(f"{next(one[n] for n in names if n in one)} {one['score']:.4f}" for one in g) for g in groups]


def _print(console: Console, *lines: Text | str) -> None:
    for line in lines:
        text = Text(line) if isinstance(line, str) else line
        if console.options.ascii_only:
            text.plain = text.plain.translate(ASCII)
        text.rstrip()
        console.print(text, soft_wrap=True)


def _ms(seconds: float) -> str:
    return f"{round(seconds * 1e3, 1):g} ms"


def _mb(size: int) -> str:
    return f"{size / 1e6:.2f} MB" if size >= 1e5 or not size else f"{size / 1e3:.1f} kB"
