"""What a person sees of a plan."""

from __future__ import annotations

import io
import re
from dataclasses import replace
from itertools import product
from typing import Any

import pytest
from rich.console import Console

from sti_hf import ExecutionPlan
from sti_hf.drawing import COMPUTING, DECOMPRESSING, READING, STYLES, TARGET, draw_plan, terminal
from sti_hf.model import Grid
from sti_hf.planning import PlanRequest, Workload, make_plan
from sti_hf.planning.timeline import Timeline
from sti_hf.shards.layout import FULL, LayerLayout
from tests.integrations.checkpoints import DEVICE


def planned(layers: int, slices: int, latency: float, budget: int, **options: Any) -> ExecutionPlan:
    """A plan of a large model on a slow disk."""
    hidden = slices * 64
    rows = (("q", 64), ("k", 64), ("v", 64), ("o", 64), ("up", 256), ("down", 256))
    grid = Grid(layers=layers, slices=slices, row_length=hidden, rows=rows)
    layouts: list[LayerLayout] = []
    for _ in range(layers):
        offset = layouts[-1].offset + layouts[-1].region_bytes if layouts else 4096
        layouts.append(LayerLayout(grid, -(-offset // 4096) * 4096, (24,) * slices, 4))
    profile = replace(
        DEVICE,
        bytes_per_second=2e8,
        widths=(1, slices),
        layer_seconds=((5e-4, 3e-3), (1e-3, 8e-3)),
        decompress_seconds=dict.fromkeys((2, 3, 4, 5, 6, 32), 2.5e-10),
    )
    asked = {"row_bytes": 4 * hidden, "submodels": "any", **options}
    return make_plan(PlanRequest(tuple(layouts), profile, latency, budget, Workload(128), **asked))


BASE = planned(12, 12, 0.2, 1_000_000)
LARGE = planned(24, 16, 0.4, 5_000_000)
SMALL = planned(12, 12, 0.02, 1_000_000)
IMPOSSIBLE = planned(12, 12, 0.004, 0)
LOAD_FIRST = planned(12, 12, 0.2, 0, strategy="load_exec", fidelity=FULL)
PLANS = {"base": BASE, "large": LARGE, "small": SMALL, "impossible": IMPOSSIBLE, "load first": LOAD_FIRST}


def drawn(plan: ExecutionPlan, width: int = 100, encoding: str = "utf-8") -> list[str]:
    """The lines of a plan, drawn without colours."""
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    draw_plan(Console(file=file, width=width, markup=False, highlight=False), plan)
    file.seek(0)
    return file.read().splitlines()


def rows(lines: list[str], plan: ExecutionPlan) -> dict[int, str]:
    """The line of every layer, without its label."""
    found = (re.match(r"layer +(\d+) ", line) for line in lines)
    by_layer = {int(match[1]): match.string for match in found if match}
    assert list(by_layer) == list(range(len(plan.bits)))
    return by_layer


@pytest.mark.parametrize(("name", "width"), list(product(PLANS, (80, 100, 140))))
def test_lines_fit_and_nothing_is_lost(name: str, width: int) -> None:
    plan = PLANS[name]
    lines = drawn(plan, width)
    assert max(map(len, lines)) <= width
    assert len(rows(lines, plan)) == len(plan.bits)
    assert not [line for line in lines if line.endswith(" ")]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_grid_shows_every_shard(plan: ExecutionPlan) -> None:
    slices = plan.bits.shape[1]
    some = plan.preloaded_pieces.any(axis=1)
    for layer, line in rows(drawn(plan), plan).items():
        cells = [line[9 + 3 * index : 12 + 3 * index] for index in range(slices)]
        bits = [0 if cell.strip() in ("·", "") else int(cell[:2]) for cell in cells]
        assert bits == plan.bits[layer].tolist()
        assert [cell[2:] == "*" for cell in cells] == plan.preloaded[layer].tolist()
        assert [cell[2:] == "+" for cell in cells] == (some & ~plan.preloaded)[layer].tolist()


def columns(line: str, sign: str) -> list[int]:
    return [index for index, found in enumerate(line) if found == sign]


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_timeline_is_to_scale(plan: ExecutionPlan) -> None:
    lines = drawn(plan)
    by_layer = rows(lines, plan)
    start = 9 + 3 * plan.bits.shape[1] + 2
    scale = (99 - start) / max(plan.timeline.end, plan.target_latency)

    def near(column: int, seconds: float) -> bool:
        return abs(column - start - seconds * scale) <= 1.51

    for k, layer in enumerate(plan.layers):
        line = by_layer[layer][start:].ljust(100)
        line = " " * start + line
        computing = columns(line, COMPUTING)
        busy = columns(line, DECOMPRESSING) + computing
        assert near(min(busy), plan.timeline.compute_start[k])
        assert near(max(busy) + 1, plan.timeline.compute_end[k])
        reading = columns(line, READING)
        assert bool(reading) == bool(plan.timeline.io_end[k] > plan.timeline.io_start[k])
        if reading:
            assert near(min(reading), plan.timeline.io_start[k])
            assert near(max(reading) + 1, plan.timeline.io_end[k])
            assert max(reading) <= min(computing)
    for layer in set(by_layer) - set(plan.layers):
        assert not set(by_layer[layer][start:]) & {READING, DECOMPRESSING, COMPUTING}
    targets = {column for line in by_layer.values() for column in columns(line, TARGET)}
    assert len(targets) == 1
    assert near(min(targets), plan.target_latency)
    (name,) = (line for line in lines if re.fullmatch(r" *T = [\d.]+ ms", line))
    assert len(name) == min(targets) + 1 or name.index("T") == start


@pytest.mark.parametrize("plan", PLANS.values(), ids=PLANS)
def test_the_axis_counts_milliseconds(plan: ExecutionPlan) -> None:
    lines = drawn(plan)
    (at,) = (index for index, line in enumerate(lines) if line.strip().startswith("┴"))
    ticks, numbers = columns(lines[at], "┴"), lines[at + 1]
    start = ticks[0]
    values = [(match.start(), float(match[0])) for match in re.finditer(r"[\d.]+", numbers)]
    assert values[0] == (start, 0.0)
    assert 3 <= len(values) <= 7
    scale = (99 - start) / max(plan.timeline.end, plan.target_latency) / 1e3
    for column, milliseconds in values:
        assert column in ticks
        assert abs(column - start - milliseconds * scale) <= 0.51


def test_what_it_costs() -> None:
    text = "\n".join(drawn(BASE))
    for number in (BASE.streamed_bytes, BASE.preload_bytes, BASE.staging_bytes):
        assert f"{number / 1e6:.2f} MB" in text
    for seconds in (BASE.predicted_latency, BASE.target_latency, BASE.first_latency):
        assert f"{round(seconds * 1e3, 1):g} ms" in text
    for bits, count in BASE.fidelity_counts().items():
        assert f" {bits}  ×{count}" in text
    assert "not run" not in text
    assert f"×{(SMALL.bits == 0).sum()} not run" in "\n".join(drawn(SMALL))


def test_a_latency_that_is_missed_is_said() -> None:
    assert "No plan keeps T: this is the fastest." in drawn(IMPOSSIBLE)
    assert "This plan does not keep T." in drawn(LOAD_FIRST)
    assert not [line for line in drawn(BASE) if "keep" in line]


def test_terminals_that_know_only_ascii() -> None:
    for one, other in zip(drawn(SMALL), drawn(SMALL, encoding="ascii"), strict=True):
        assert one.translate(str.maketrans("·░▒█┊─┴×", ".-d#|-+x")) == other


@pytest.mark.parametrize("slices", [40, 64])
def test_wide_grids_take_less_room_a_shard(slices: int) -> None:
    plan = planned(3, slices, 0.4, 2_000_000)
    lines = drawn(plan)
    grid = [line for line in lines if line.startswith("layer")]
    beside = slices == 40
    assert len(grid) == (3 if beside else 6)
    for layer, line in enumerate(grid[:3]):
        signs = line[9:].replace("*", "").replace("+", "")[:slices]
        assert signs == "".join({0: "·", FULL: "F"}.get(bits, str(bits)) for bits in plan.bits[layer])
    assert max(map(len, lines)) <= 100


def test_colours_are_the_fidelities() -> None:
    console = Console(
        file=io.StringIO(), width=100, force_terminal=True, color_system="truecolor", record=True, markup=False
    )
    assert len(BASE.fidelity_counts()) > 1
    draw_plan(console, BASE)
    html = console.export_html(inline_styles=True)
    for bits, style in STYLES.items():
        colour = style.partition(" on ")[2]
        if colour:
            triplet = console.get_style(f"on {colour}").bgcolor.get_truecolor()  # type: ignore[union-attr]
            assert (f"background-color: {triplet.hex}" in html) == (bits in BASE.fidelity_counts())


def test_pipes_are_wide_and_plain(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("FORCE_COLOR", "TTY_COMPATIBLE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    assert terminal().width == 100
    draw_plan(terminal(), BASE)
    assert "\x1b" not in capsys.readouterr().out
    monkeypatch.setenv("COLUMNS", "120")
    assert terminal().width == 120


def test_a_plan_without_times() -> None:
    plan = replace(BASE, timeline=Timeline.unknown(12))
    assert not {READING, DECOMPRESSING, COMPUTING} & set("".join(rows(drawn(plan), plan).values()))
