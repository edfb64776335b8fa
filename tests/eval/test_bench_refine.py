"""`eval/bench_refine.py` on a tiny model, and the process that reads in bursts."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.utils import logging

from eval import bench_refine
from eval.disk_bursts import READ_BYTES, disk_bursts
from tests.eval.conftest import TinyTask


@pytest.fixture(autouse=True)
def _progress_bars() -> Iterator[None]:
    yield
    logging.enable_progress_bar()


def read_by(process: int) -> int:
    lines = Path(f"/proc/{process}/io").read_text().splitlines()
    return int(next(line.split()[1] for line in lines if line.startswith("rchar")))


def children() -> set[int]:
    return {int(pid) for tasks in Path("/proc/self/task").glob("*/children") for pid in tasks.read_text().split()}


def test_bursts_are_read_by_another_process_until_the_block_ends(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(bytes(4 * READ_BYTES))
    before = children()
    with disk_bursts(tmp_path / "file", busy=0.01, idle=0.01):
        (child,) = children() - before
        begun, end = read_by(child), time.monotonic() + 20
        while read_by(child) < begun + 8 * READ_BYTES and time.monotonic() < end:
            time.sleep(0.01)
        assert read_by(child) >= begun + 8 * READ_BYTES
    assert child not in children()
    with disk_bursts(tmp_path / "file", busy=0, idle=1):
        assert children() == before


def test_both_ways_answer_the_same_sentences(
    tiny_sst2: TinyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["bench_refine", "--model", str(tiny_sst2.store.path), "--glue", str(tiny_sst2.data), "--tokens", "16"]
    command += ["--target-latency", "2s", "--inferences", "6", "--json", str(tmp_path / "out.json")]
    monkeypatch.setattr(sys, "argv", command)
    monkeypatch.setenv("STI_HOME", str(tmp_path))
    bench_refine.main()
    content = json.loads((tmp_path / "out.json").read_text())
    off, on = content["rows"]
    for row in (off, on):
        assert len(row["seconds"]) == len(row["bits"]) == 6
        assert row["lowest_bits"] >= 2
        assert 0 <= row["agreement"] <= 100
        assert row["share_in_time"] == sum(seconds < 1.05 * 2 for seconds in row["seconds"]) / 6
        assert row["p50_ms"] <= row["p95_ms"] <= 1e3 * max(row["seconds"])
    assert off["mean_bits"] == off["planned_bits"]
    assert on["planned_bits"] <= 6
    printed = capsys.readouterr().out
    assert "| refine off |" in printed and "| refine on |" in printed
    assert f"{content['full_metric']:.1f}" in printed


def test_a_rate_that_only_the_streamer_keeps_will_not_do(
    tiny_sst2: TinyTask, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    command = ["bench_refine", "--model", str(tiny_sst2.store.path), "--glue", str(tiny_sst2.data)]
    monkeypatch.setattr(sys, "argv", [*command, "--inferences", "1", "--disk-rate", "50", "--emulate"])
    with pytest.raises(SystemExit, match="The kernel has to hold the rate for both processes"):
        bench_refine.main()
