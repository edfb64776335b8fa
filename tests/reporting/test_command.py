"""`sti report`."""

from __future__ import annotations

import json
import re
import shutil
import sys
from pathlib import Path

import pytest

from sti_hf import ShardStore
from tests.commands import Sti, done


def test_report(sti: Sti, store: ShardStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sti_hf.reporting.plan_grid.STEPS", 4)
    output = tmp_path / "page.html"
    options = ("-o", output, "--target-latency", "9.87ms", "--preload-budget", "6.5kB", "--importance", "mood")
    assert done(sti("report", store.path, *options)).out.startswith(f"{output}: ")
    data = re.search(r'type="application/json">(.*?)</script>', output.read_text())
    assert data is not None
    content = json.loads(data[1])
    assert 9.87 in content["latencies"]
    assert 6500 in content["budgets"]
    assert content["plannedWith"] == "mood"
    printed = done(sti("report", store.path, *options, "--json")).json
    assert printed["report"] == str(output)
    assert printed["bytes"] == output.stat().st_size
    assert printed["runs"] == 6
    assert list(tmp_path.iterdir()) == [output]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["{tmp}/nowhere"], "is not a store"),
        (["{store}", "-o", "{tmp}"], "is a folder; name the file to write"),
        (["{store}", "-o", "{tmp}/nowhere/page.html"], "There is no folder"),
        (["{store}", "-o", "{tmp}/page.html", "--results", "{tmp}/no.json"], "cannot be read"),
        (["{store}", "-o", "{tmp}/page.html", "--importance", "joy"], "has no importance profile 'joy'; it has mood"),
        (["{store}", "-o", "{tmp}/page.html", "--target-latency", "soon"], "must be a positive number"),
    ],
)
def test_mistakes_are_one_line(
    sti: Sti, store: ShardStore, tmp_path: Path, arguments: list[str], sentence: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sti_hf.reporting.gather.device_profile", lambda *_: pytest.fail("it began to measure"))
    result = sti("report", *(argument.format(tmp=tmp_path, store=store.path) for argument in arguments))
    assert (result.status, result.out) == (2, "")
    assert len(result.err.splitlines()) == 1
    assert sentence in result.err
    assert list(tmp_path.iterdir()) == []


def test_a_baseline_by_default(sti: Sti, store: ShardStore, tmp_path: Path) -> None:
    mine = ShardStore.open(shutil.copytree(store.path, tmp_path / "mine"))
    config = (mine.path / "config.json").read_text()
    assert '"quant_method": "sti"' in config
    changed = config.replace('"quant_method": "sti"', '"quant_method": "sti", "strategy": "preload", "fidelity": 4')
    (mine.path / "config.json").write_text(changed)
    result = sti("report", mine.path, "-o", tmp_path / "page.html")
    assert result.status == 2
    assert "this store's default is 'preload'" in result.err


def test_without_plotly(sti: Sti, store: ShardStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "plotly.offline", None)
    result = sti("report", store.path, "-o", tmp_path / "page.html")
    assert result.status == 2
    assert 'pip install "sti-hf[report]"' in result.err
    assert list(tmp_path.iterdir()) == []
