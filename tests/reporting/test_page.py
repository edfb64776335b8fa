"""The page, in a browser."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from sti_hf import ExecutionPlan, ShardStore, STIConfig
from sti_hf.reporting.gather import Report
from sti_hf.reporting.page import write_report
from tests.reporting.browser import Visit, visit
from tests.reporting.conftest import NAME
from tests.reporting.test_results import ROWS

CONFIG = STIConfig(importance="mood", target_latency=0.0123, preload_budget=8000)


@pytest.fixture(scope="module")
def page(page_folder: Path) -> Path:
    return page_folder / "report.html"


@pytest.fixture(scope="module")
def report(store: ShardStore, page: Path) -> Report:
    """What the page shows, which is written."""
    results = page.with_name("results.json")
    results.write_text(json.dumps({"facts": {"metric": "accuracy on 8 sentences"}, "rows": ROWS}))
    page.write_text("what was there before")
    return write_report(store, page, CONFIG, [results])


def check_plan(seen: Visit, plan: ExecutionPlan) -> None:
    """The heat map's cells are the shards of `plan` that run, row by row; a sign after the bits: preloaded."""
    marks = np.array(["", "◦", "•"])[plan.preloaded_pieces.any(axis=1).astype(int) + plan.preloaded]
    cells = [f"{bits}{mark}" for bits, mark in zip(plan.bits.ravel(), marks.ravel()) if bits]
    assert seen.parts["plan"].cells == cells
    assert seen.console == []


def another_plan(report: Report) -> tuple[int, int, ExecutionPlan]:
    """A plan of several fidelities, unlike the one that is shown first, and its place in the grid."""
    for s, row in enumerate(report.grid.plans):
        for t, plan in enumerate(row):
            if (plan.bits != report.shown.bits).any() and len(plan.fidelity_counts()) > 1 and plan.preloaded.any():
                return s, t, plan
    raise AssertionError("all plans are alike")


def test_everything_is_drawn(report: Report, page: Path) -> None:
    seen = visit(page)
    check_plan(seen, report.shown)
    assert seen.parts["name"].text == NAME
    for name in ("importance", "plan", "timeline", "distortion", "submodels", "results-0"):
        assert "js-plotly-plot" in seen.parts[name].attributes["class"], name
    assert "is worth" in seen.parts["importance-says"].text
    assert "all 3 × 4 shards run" in seen.parts["plan-says"].text
    assert "run cold on this device" in seen.parts["timeline-says"].text
    assert all(word in seen.parts["timeline"].text for word in ("predicted", "measured", "disk", "processor"))
    assert seen.parts["runs"].text.count("T =") == len(report.runs) == 6


def test_the_address_chooses_t_and_s(report: Report, page: Path) -> None:
    s, t, plan = another_plan(report)
    seen = visit(page, f"#T={report.grid.latencies[t] * 1e3}&S={report.grid.budgets[s] / 1e6}")
    check_plan(seen, plan)


def test_the_controls_change_the_plan(report: Report, page: Path) -> None:
    s, t, plan = another_plan(report)
    script = f"""
        const move = (id, value) => {{
          document.getElementById(id).value = value;
          document.getElementById(id).dispatchEvent(new Event("input"));
        }};
        move("latency", {t});
        move("budget", {s});
        say("name", location.hash);
    """
    seen = visit(page, script=script)
    check_plan(seen, plan)
    assert f"{plan.predicted_latency * 1e3:.3g} ms" in seen.parts["plan-says"].text
    address = dict(part.split("=") for part in seen.parts["name"].text.lstrip("#").split("&"))
    assert float(address["T"]) == pytest.approx(plan.target_latency * 1e3)
    assert float(address["S"]) * 1e6 == pytest.approx(plan.preload_budget)


def test_a_run_can_be_chosen_and_fits_a_phone(report: Report, page: Path) -> None:
    press = "document.querySelectorAll('#runs button')[0].click();"
    narrow = "document.body.style.width = '360px'; dispatchEvent(new Event('resize'));"
    widest = "setTimeout(() => say('name', document.body.scrollWidth), 3000);"
    seen = visit(page, script=press + narrow + widest)
    check_plan(seen, report.runs[0].plan)
    assert "measured" in seen.parts["timeline"].text
    assert seen.parts["name"].text == "360"


def test_a_store_without_importance(bare_store: ShardStore, page_folder: Path) -> None:
    page = page_folder / "bare.html"
    report = write_report(bare_store, page, CONFIG.replaced(importance=None))
    seen = visit(page)
    check_plan(seen, report.shown)
    assert "has no importance profile" in seen.parts["importance-says"].text
    assert "hidden" in seen.parts["importance"].attributes
    assert "submodels" not in seen.parts


def test_complaints_are_seen(report: Report, page: Path) -> None:
    """The page may not use the network; and what the other tests look for in the console would be found there."""
    seen = visit(page, script="fetch('https://example.org/').catch(() => null); throw new Error('on purpose');")
    console = " ".join(seen.console)
    assert "on purpose" in console
    assert "Content Security Policy" in console


def test_the_page_is_whole(report: Report, page: Path) -> None:
    text = page.read_text()
    assert "what was there before" not in text
    assert 3e6 < len(text) < 8e6
    assert [path.name for path in page.parent.iterdir() if path.name.startswith(".")] == []
