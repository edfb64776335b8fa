"""eval.bench_generation: every competitor writes the same tiny model's text."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from eval.bench_generation import OFFLOADED, STI, STOCK, load, markdown, measure, options, prepare, written
from sti_hf import shard_checkpoint
from tests.integrations.checkpoints import checkpoint

OURS = f"{STI}|1s|500ms|1MB"


@pytest.fixture
def work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("STI_HOME", str(tmp_path / "home"))
    source = checkpoint(LlamaForCausalLM, tmp_path / "model", max_position_embeddings=128)
    store = shard_checkpoint(source, tmp_path / "made", quantizer="gobo")
    folder = tmp_path / "work"
    folder.mkdir()
    prepare(options(["--model", str(source), "--store", str(store.path)]), folder)
    return folder


def test_all_of_them_are_measured(work: Path) -> None:
    chosen = options(["--new", "5", "--prompt", "8"])
    rows = [{"name": name, **measure(name, work, chosen)} for name in (OURS, STOCK, OFFLOADED)]
    for row in rows:
        assert row["first"] > 0 and row["token"] > 0
    assert rows[0]["predicted_first"] > 0 and 2 <= rows[0]["token_bits"] <= 32
    lines = markdown(rows).splitlines()
    assert len(lines) == 5 and "| 1.0 |" in lines[2]


def test_every_token_is_timed(work: Path) -> None:
    times = written(load(STOCK, work), torch.ones(1, 4, dtype=torch.long) * 5, 6)
    assert len(times) == 6 and times == sorted(times)
