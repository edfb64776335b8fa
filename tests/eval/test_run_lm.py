"""`eval/run_lm.py` on a tiny language model, against stock Transformers and PyTorch."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import BertForSequenceClassification, LlamaForCausalLM
from transformers.utils import logging

from eval import run_lm
from sti_hf import ShardStore, shard_checkpoint
from sti_hf.integrations.full_model import full_model
from sti_hf.integrations.tokenizer import load_tokenizer
from sti_hf.profiling.language import load_windows
from sti_hf.profiling.plan_weights import PlanWeights
from sti_hf.shards.layout import FULL
from sti_hf.shards.reading import read_quantized_layer
from tests.integrations.checkpoints import checkpoint, use_known_device
from tests.models import HEADS
from tests.tasks import sentences

TOKENS, WINDOWS = 16, 4
QUICK = ("--samples", str(WINDOWS), "--seq-len", str(TOKENS), "--compute-dtype", "float32")


@pytest.fixture(autouse=True)
def _quiet_and_known(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    use_known_device(monkeypatch)
    yield
    logging.enable_progress_bar()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    folder = tmp_path_factory.mktemp("llama")
    source = checkpoint(LlamaForCausalLM, folder / "model", num_key_value_heads=HEADS)  # as the known device has
    return shard_checkpoint(source, folder / "store", quantizer="gobo")


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(sentences(60)), encoding="utf-8")
    return path


@torch.no_grad()
def expected(store: ShardStore, text: Path, bits: int) -> dict[str, float]:
    """Of all shards at one fidelity, in stock models."""
    windows = load_windows(text, load_tokenizer(store), tokens=TOKENS, samples=WINDOWS)
    full, model = full_model(store), full_model(store)
    PlanWeights(model, store).set(np.full((store.grid.layers, store.grid.slices), bits))
    strips = store.vocabulary
    assert strips is not None
    if bits != FULL:
        rows = [read_quantized_layer(strips, layer).dequantize(bits) for layer in range(strips.grid.layers)]
        words = torch.cat(rows).flatten(0, 1)[: model.config.vocab_size]
        model.lm_head.weight = torch.nn.Parameter(words)  # the embeddings stay full
    outputs = [each(input_ids=windows, labels=windows) for each in (full, model)]
    logs = [output.logits.log_softmax(-1) for output in outputs]
    kl = F.kl_div(logs[1], logs[0], reduction="none", log_target=True).sum(-1).mean()
    same = (logs[0].argmax(-1) == logs[1].argmax(-1)).float().mean()
    perplexities = [math.exp(output.loss) for output in outputs]
    return {
        "perplexity": perplexities[1],
        "ratio": perplexities[1] / perplexities[0],
        "kl": float(kl),
        "agreement": 100 * float(same),
    }


def test_end_to_end(store: ShardStore, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = {name: tmp_path / f"found.{name}" for name in ("json", "md")}
    run_lm.main(
        [
            *("--store", str(store.path), "--texts", str(text), *QUICK, "--fidelities", "2", "4", "32"),
            *("--targets", "1us", "6ms", "1s", "--preload-budgets", "0", "8kB"),
            *("--json", str(files["json"]), "--markdown", str(files["md"])),
        ]
    )
    printed = capsys.readouterr().out
    assert files["md"].read_text() == printed
    assert str(tmp_path) not in printed
    content = json.loads(files["json"].read_text())
    rows: list[dict[str, Any]] = content["rows"]
    baselines, ours = rows[:3], rows[3:]
    assert [row["fidelity"] for row in baselines] == [2, 4, FULL]
    assert len(ours) == 3 * 2
    for row in baselines:
        quality = row["quality"]
        for name, value in expected(store, text, row["fidelity"]).items():
            assert quality[name] == pytest.approx(value, rel=1e-3, abs=1e-5)
        assert row["feasible"] is row["target"] is None
    full = baselines[-1]["quality"]
    assert full["agreement"] == 100
    assert content["full_perplexity"] == pytest.approx(full["perplexity"], rel=1e-4)
    assert all(row["as_planned"] for row in rows)
    assert all(row["submodel"] == [store.grid.layers, store.grid.slices] for row in rows), "none was measured"
    assert 0 < baselines[0]["bytes_read"] < baselines[1]["bytes_read"] < baselines[2]["bytes_read"]
    assert [row["feasible"] for row in ours[:2]] == [False, False]
    assert [row["feasible"] for row in ours[-2:]] == [True, True]
    assert ours[-1]["preload_bytes"] > ours[-2]["preload_bytes"] == 0
    assert ours[-1]["quality"]["kl"] <= ours[0]["quality"]["kl"]
    assert "| std_pipeline, full |" in printed
    assert "T missed" in printed
    assert "NOT AS PLANNED" not in printed


def test_usual_targets_are_those_of_the_baseline(
    store: ShardStore, text: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    found = tmp_path / "found.json"
    run_lm.main(
        [
            *("--store", str(store.path), "--texts", str(text), *QUICK, "--fidelities", "2"),
            *("--preload-budgets", "0", "--json", str(found)),
        ]
    )
    ours = [row for row in json.loads(found.read_text())["rows"] if row["strategy"] == "sti"]
    assert ours
    assert all(row["feasible"] for row in ours)
    assert ours == sorted(ours, key=lambda row: row["target"])


def test_a_users_mistakes(store: ShardStore, text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    classifier = checkpoint(BertForSequenceClassification, tmp_path / "model")
    shard_checkpoint(classifier, tmp_path / "classifier", quantizer="gobo")
    given = ["--store", str(store.path), "--texts", str(text)]
    for arguments, sentence in (
        (["--store", str(tmp_path / "classifier"), "--texts", str(text)], "with a causal head, and this is a Bert"),
        (["--store", str(store.path), "--texts", str(tmp_path / "absent")], "There is no text file"),
        (["--store", str(tmp_path), "--texts", str(text)], "is not a store"),
        ([*given, "--targets", "soon"], "argument --targets"),
        ([*given, "--preload-budgets", "much"], "argument --preload-budgets"),
        ([*given, *QUICK, "--importance", "nothing"], "has no importance profile 'nothing'"),
    ):
        with pytest.raises(SystemExit) as exit:
            run_lm.main(arguments)
        assert exit.value.code == 2
        assert sentence in capsys.readouterr().err
