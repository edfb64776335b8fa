"""Profiling a language model end to end: from a store and a text to plans that use the profile."""

from __future__ import annotations

import math
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import BertLMHeadModel, LlamaForCausalLM, LlamaModel

from sti_hf import ShardStore, shard_checkpoint
from sti_hf.integrations.full_model import full_model
from sti_hf.integrations.importance import profile_importance
from sti_hf.integrations.tokenizer import load_tokenizer
from sti_hf.planning.effects import EffectsImportance
from sti_hf.planning.importance_file import read_profile, submodel_accuracy
from sti_hf.profiling.language import load_windows
from sti_hf.profiling.plan_weights import PlanWeights
from sti_hf.profiling.submodels import coarse_grid
from tests.commands import Sti, done
from tests.integrations.checkpoints import checkpoint
from tests.model.submodels import cut_down
from tests.models import LAYERS
from tests.tasks import sentences

TOKENS, WINDOWS = 16, 6
SLICES = 2
QUICK = ("--samples", WINDOWS, "--max-length", TOKENS)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text("\n".join(sentences(60)), encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def untouched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama")
    shard_checkpoint(checkpoint(LlamaForCausalLM, folder / "model"), folder / "store", quantizer="gobo")
    return folder / "store"


@pytest.fixture
def language_store(untouched: Path, tmp_path: Path) -> Path:
    return shutil.copytree(untouched, tmp_path / "store")


@torch.no_grad()
def references(store: ShardStore, text: Path) -> tuple[dict[tuple[int, int], float], dict[int, float]]:
    """Stock perplexities of the first n layers and m slices at 6 bits, and PyTorch's mean KL by uniform fidelity, for
    the windows that are profiled on."""
    windows = load_windows(text, load_tokenizer(store), tokens=TOKENS, samples=WINDOWS)
    full, model = full_model(store), full_model(store)
    weights = PlanWeights(model, store)
    logs = full(input_ids=windows).logits.log_softmax(-1)
    divergences = {}
    for bits in (2, 6):
        weights.set(np.full((store.grid.layers, store.grid.slices), bits))
        moved = model(input_ids=windows).logits.log_softmax(-1)
        by_window = F.kl_div(moved, logs, reduction="none", log_target=True).sum(-1).mean(1)
        divergences[bits] = float(by_window[1::2].mean())  # plans are checked on every other window
    orders = [list(range(SLICES))] * LAYERS
    perplexities = {
        size: math.exp(cut_down(model, *size, orders)(input_ids=windows, labels=windows).loss)
        for size in coarse_grid(LAYERS, SLICES)
    }
    return perplexities | {(0, 0): math.exp(full(input_ids=windows, labels=windows).loss)}, divergences


def test_a_language_model_is_profiled_on_text(sti: Sti, language_store: Path, text: Path) -> None:
    printed = done(sti("profile-importance", language_store, "--texts", text, *QUICK, "--json")).json
    store = ShardStore.open(language_store)
    profile, facts = read_profile(store, "language")
    assert isinstance(profile, EffectsImportance)
    assert (printed["name"], facts["windows"], facts["window_tokens"]) == ("language", WINDOWS, TOKENS)
    assert (facts["metric"], facts["texts"]) == ("relative_likelihood", text.name)
    perplexities, divergences = references(store, text)
    assert facts["full_perplexity"] == pytest.approx(perplexities[0, 0], rel=1e-4)
    accuracy = submodel_accuracy(store, facts)
    found: dict[str, Any] = facts["submodels"][0]
    for depth, width, value in found["perplexity"]:
        assert value == pytest.approx(perplexities[depth, width], rel=1e-3)
        expected = min(1, perplexities[0, 0] / perplexities[depth, width])
        assert accuracy[depth, width] == pytest.approx(expected, rel=1e-3)
    assert {(depth, width) for depth, width, _ in found["next_token_accuracy"]} == set(accuracy)
    assert profile.checked is not None
    for bits, expected in divergences.items():
        (row,) = np.flatnonzero((profile.checked.bits == bits).all(axis=(1, 2)))
        assert profile.checked.distortion[row] == pytest.approx(expected, rel=1e-3)
    plan = done(sti("plan", language_store, "--target-latency", "1s", "--json")).json
    best = max(accuracy, key=lambda size: (accuracy[size], size[0] * size[1]))
    assert accuracy[tuple(plan["submodel"])] == plan["accuracy"] == accuracy[best]
    assert plan["distortion"] == pytest.approx(profile.distortion(np.array(plan["bits"])))


def test_the_papers_importance_of_a_language_model(sti: Sti, language_store: Path, text: Path) -> None:
    options = ("--method", "exhaustive", "--base-fidelity", 2, "--name", "paper")
    shown = done(sti("profile-importance", language_store, "--texts", text, *QUICK, *options)).out
    _, facts = read_profile(ShardStore.open(language_store), "paper")
    assert shown.startswith(f"paper: exhaustive, {WINDOWS} windows of {TOKENS} tokens, from 2 bits\n")
    assert f"perplexity: {facts['full_perplexity']:.2f} in full" in shown
    assert facts["full_score"] == pytest.approx(1)
    assert 0 < facts["base_score"] <= 1


def test_mistakes_are_one_line(sti: Sti, untouched: Path, text: Path, tmp_path: Path) -> None:
    def refused(store: Path, *options: Any) -> str:
        result = sti("profile-importance", store, *options)
        assert (result.status, result.out, len(result.err.splitlines())) == (2, "", 1)
        return result.err

    assert "There is no text file" in refused(untouched, "--texts", tmp_path / "absent.txt")
    short = tmp_path / "short.txt"
    short.write_text("word20 word21")
    assert "has 2 tokens, which make 0 windows of 70" in refused(untouched, "--texts", short)
    assert "batch_size must be at least 1" in refused(untouched, "--texts", text, *QUICK, "--batch-size", 0)
    assert "metric belongs to a task" in refused(untouched, "--texts", text, "--metric", tmp_path)
    assert "needs a model for sequence classification" in refused(untouched, "--task", "sst2")
    for number, (model_class, overrides, sentence) in enumerate(
        [
            (LlamaModel, {}, "with a causal head, and this is a LlamaModel"),
            (BertLMHeadModel, {"is_decoder": False}, "sees the tokens that follow a position"),
        ]
    ):
        source = checkpoint(model_class, tmp_path / f"model{number}", **overrides)
        shard_checkpoint(source, tmp_path / f"store{number}", quantizer="gobo")
        assert sentence in refused(tmp_path / f"store{number}", "--texts", text, *QUICK)
    with pytest.raises(ValueError, match="either a task, or texts"):
        profile_importance(untouched)
    with pytest.raises(ValueError, match="either a task, or texts"):
        profile_importance(untouched, "sst2", texts=text)
