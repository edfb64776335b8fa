"""Divergences, losses and effects of the next token, against PyTorch, stock Transformers and brute force."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch.nn import functional as F
from transformers import LlamaForCausalLM, PreTrainedModel

from sti_hf.profiling import next_tokens
from sti_hf.profiling.effects import EffectsProbe
from sti_hf.profiling.next_tokens import NextTokenKL, kl_divergence, token_losses
from sti_hf.profiling.outputs import Batch
from sti_hf.profiling.plan_weights import PlanWeights
from sti_hf.shards.layout import FULL
from sti_hf.shards.store import ShardStore
from tests.models import VOCABULARY, tiny_inputs, tiny_model
from tests.runtime.sessions import random_bits, store_of


@pytest.fixture(autouse=True)
def _few_positions_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_tokens, "CHUNK_BYTES", 4 * 3 * VOCABULARY * 4)


@pytest.fixture(scope="module")
def model() -> PreTrainedModel:
    return tiny_model(LlamaForCausalLM)


@pytest.fixture(scope="module")
def store(model: PreTrainedModel, tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return store_of(copy.deepcopy(model), tmp_path_factory.mktemp("next-tokens") / "store")


@torch.no_grad()
def mean_kl(full: PreTrainedModel, other: PreTrainedModel, batch: Batch) -> float:
    """PyTorch's own, a mean over each text's tokens."""
    logs = [each(**batch).logits.double().log_softmax(-1) for each in (full, other)]
    divergences = F.kl_div(logs[1], logs[0], reduction="none", log_target=True).sum(-1)
    mask = batch["attention_mask"]
    return float(((divergences * mask).sum(1) / mask.sum(1)).mean())


def test_kl_divergence() -> None:
    full, logits = (torch.randn(3, 11, VOCABULARY, generator=torch.Generator().manual_seed(seed)) for seed in (0, 1))
    expected = F.kl_div(logits.log_softmax(-1), full.log_softmax(-1), reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(kl_divergence(full, logits), expected)
    assert kl_divergence(full, full).abs().max() < 1e-6
    half = kl_divergence(full.bfloat16(), logits)
    torch.testing.assert_close(half, expected, rtol=0.05, atol=0.01)


def test_token_losses_are_the_stock_models(model: PreTrainedModel) -> None:
    ids = tiny_inputs(model, padded=False)["input_ids"]
    with torch.no_grad():
        stock = model(input_ids=ids, labels=ids)
    losses = token_losses(stock.logits, ids)
    assert losses.shape == (3, ids.shape[1] - 1)
    torch.testing.assert_close(losses.mean(), stock.loss)


@pytest.mark.parametrize("padded", [False, True])
def test_plans_are_measured_by_the_mean_kl(model: PreTrainedModel, store: ShardStore, padded: bool) -> None:
    twin = copy.deepcopy(model)
    weights = PlanWeights(twin, store)
    batches = [tiny_inputs(model, batch=4, padded=padded, seed=seed) for seed in range(2)]
    weights.set(np.full((store.grid.layers, store.grid.slices), FULL))
    moved = NextTokenKL().since(twin, batches)
    assert moved() < 1e-6
    for seed in range(2):
        weights.set(random_bits(store, seed))
        expected = np.mean([mean_kl(model, twin, batch) for batch in batches])
        assert moved() == pytest.approx(expected, rel=1e-4)


def test_squared_changes_of_directions_are_the_kl(model: PreTrainedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(next_tokens, "PROJECTIONS", 3000)
    monkeypatch.setattr(next_tokens, "CHUNK_BYTES", 1 << 30)
    near = copy.deepcopy(model)
    with torch.no_grad():
        for number, parameter in enumerate(near.parameters()):
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number))
            parameter.add_(noise, alpha=3e-3)
        batch = tiny_inputs(model, batch=2)
        values = [NextTokenKL().directions(each(**batch), batch, 0) for each in (model, near)]
    squares = (values[0] - values[1]).square().mean()
    assert float(squares) == pytest.approx(mean_kl(model, near, batch), rel=0.1)


def test_effects_are_the_kl_of_lowering_one_shard(
    model: PreTrainedModel, store: ShardStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To first order: at 6 bits, around the full model, by a mean over many projections."""
    monkeypatch.setattr(next_tokens, "PROJECTIONS", 400)
    full = np.full((store.grid.layers, store.grid.slices), FULL)
    batch = tiny_inputs(model, batch=2)
    twin = copy.deepcopy(model)
    weights = PlanWeights(twin, store)
    effects = EffectsProbe(twin, weights, [batch], NextTokenKL()).measure(full)[:, :, -1]
    found = np.square(effects).mean(-1)
    expected = np.empty_like(found)
    for shard in np.ndindex(*full.shape):
        bits = full.copy()
        bits[shard] = 6
        weights.set(bits)
        expected[shard] = mean_kl(model, twin, batch)
    np.testing.assert_allclose(found, expected, rtol=0.35)
    assert np.corrcoef(found.ravel(), expected.ravel())[0, 1] > 0.97
