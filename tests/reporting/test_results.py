"""Results of eval/run_glue.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sti_hf.reporting.results import Point, read_results


def row(strategy: str, cold: float, metric: float, **setting: Any) -> dict[str, Any]:
    whole = {"strategy": strategy, "fidelity": None, "target": None, "preload_budget": None, **setting}
    feasible = cold < setting["target"] if "target" in setting else None
    return {"setting": whole, "cold_p50": cold, "accuracy": {"metric": metric}, "feasible": feasible}


ROWS = [
    row("sti", 0.09, 88.0, target=0.1, preload_budget=0),
    row("sti", 0.06, 80.0, target=0.05, preload_budget=0),
    row("sti", 0.05, 81.5, target=0.06, preload_budget=1_000_000),
    row("preload", 0.02, 89.5, fidelity=32),
]


def written(folder: Path, content: Any) -> Path:
    path = folder / "minilm-sst2.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return path


def test_a_line_for_every_strategy_and_buffer(tmp_path: Path) -> None:
    facts = {"metric": "accuracy on 436 sentences", "disk": "200 MB/s"}
    results = read_results(written(tmp_path, {"facts": facts, "rows": ROWS, "claims": []}))
    assert (results.name, results.metric) == ("minilm-sst2", "accuracy on 436 sentences")
    assert results.lines == {
        "sti, S = 0 MB": [Point(0.06, 80.0, "T = 50.0 ms", False), Point(0.09, 88.0, "T = 100.0 ms", True)],
        "sti, S = 1 MB": [Point(0.05, 81.5, "T = 60.0 ms", True)],
        "preload": [Point(0.02, 89.5, "32 bits", True)],
    }


@pytest.mark.parametrize(
    "content",
    [
        "no JSON",
        [],
        {"rows": ROWS},
        {"facts": {"metric": "accuracy"}, "rows": [{"setting": {}}]},
        {"facts": {"metric": "accuracy"}, "rows": []},
        {"facts": {"metric": "matthews"}, "rows": [row("preload", 0.02, float("nan"), fidelity=2)]},
    ],
)
def test_a_file_without_results(tmp_path: Path, content: Any) -> None:
    with pytest.raises(ValueError, match="has no results"):
        read_results(written(tmp_path, content))


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read: No such file"):
        read_results(tmp_path / "nothing.json")
