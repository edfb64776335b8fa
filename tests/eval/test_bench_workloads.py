"""`eval/bench_workloads.py` on tiny models: every workload is run, and compared with what its plan predicts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.utils import logging

from eval import bench_workloads
from sti_hf.planning import Workload
from tests.integrations.checkpoints import use_known_device


@pytest.fixture(autouse=True)
def _as_it_was(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    use_known_device(monkeypatch)
    monkeypatch.setenv("STI_HOME", "unused")  # which the benchmark sets for itself
    yield
    logging.enable_progress_bar()


def test_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = tmp_path / "found.json"
    sizes = ("--layers", "2", "--hidden", "256", "--image-size", "32")
    bench_workloads.main(
        [*sizes, "--texts", "1x16", "2x32", "--images", "1", "3", "--runs", "2", "--rounds", "1", "--json", str(found)]
    )
    rows = json.loads(found.read_text())["rows"]
    patches = (32 // 16) ** 2 + 1
    assert [(row["what"], row["mode"], row["batch"], row["tokens"]) for row in rows] == [
        (what, mode, batch, tokens)
        for what, batch, tokens in (("BERT", 1, 16), ("BERT", 2, 32), ("ViT", 1, patches), ("ViT", 3, patches))
        for mode in ("warm", "cold")
    ]
    for row in rows:
        assert row["predicted_ms"] > 0 and 0 < row["fastest_ms"] <= row["median_ms"]
        assert row["off"] == pytest.approx(row["median_ms"] / row["predicted_ms"] - 1)
    warm, cold = (sum(row["predicted_ms"] for row in rows if row["mode"] == mode) for mode in ("warm", "cold"))
    assert cold > warm, "shards are read"
    printed = capsys.readouterr().out
    assert printed.count("\n| BERT |") == printed.count("\n| ViT |") == 4
    assert str(tmp_path) not in printed


@pytest.mark.parametrize(("text", "workload"), [("8x64", Workload(64, 8)), ("1x512", Workload(512))])
def test_workloads_in_words(text: str, workload: Workload) -> None:
    assert bench_workloads.text_workload(text) == workload


def test_rounds_are_told_of_by_their_medians() -> None:
    rounds = [[{"what": "BERT", "batch": 2, "off": off}] for off in (0.3, -0.1, 0.1)]
    assert bench_workloads.medians(rounds) == [{"what": "BERT", "batch": 2, "off": 0.1}]
