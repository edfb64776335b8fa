"""A forward with a key/value cache runs the submodel that the cache was made with, or raises one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache, GemmaForCausalLM, Olmo2ForCausalLM, PreTrainedModel, RobertaForCausalLM

from sti_hf.errors import UnsupportedUseError
from sti_hf.model import get_architecture
from sti_hf.planning import Workload
from sti_hf.runtime.inputs import cached_tokens, workload_of
from sti_hf.shards.store import ShardStore
from tests.models import tiny_inputs, tiny_model
from tests.runtime.sessions import plan_of, planned_by, running, store_of

STOCK = tiny_model(RobertaForCausalLM)
IDS = tiny_inputs(STOCK, batch=2, tokens=24, padded=False)["input_ids"]
SMALL, WHOLE = (2, 3), (3, 4)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return store_of(STOCK, tmp_path_factory.mktemp("cache") / "store")


def plan_with(store: ShardStore, submodel: tuple[int, int]) -> Any:
    bits = np.zeros((store.grid.layers, store.grid.slices), dtype=np.int64)
    bits[: submodel[0], : submodel[1]] = 32
    return plan_of(store, bits)


@pytest.fixture(params=[(SMALL, WHOLE), (WHOLE, SMALL), ((3, 3), (3, 4)), ((2, 4), (3, 4))])
def submodels(request: pytest.FixtureRequest) -> Any:
    """Of a prompt of 20 tokens, and of single ones."""
    return request.param


@pytest.fixture
def model(store: ShardStore, submodels: Any) -> Any:
    long, short = (plan_with(store, submodel) for submodel in submodels)
    with pytest.warns(UserWarning) if submodels == (WHOLE, SMALL) else _nothing():
        model = planned_by(store, lambda config, workload: long if workload.tokens > 16 else short, seq_len=20)
        model(IDS[:, :1])
    yield model
    model.sti.close()


def _nothing() -> Any:
    import contextlib

    return contextlib.nullcontext()


def logits_at_once(store: ShardStore, submodel: tuple[int, int]) -> torch.Tensor:
    """Of all tokens, by that submodel, without a cache."""
    model = running(store, plan_with(store, submodel))
    logits = model(IDS).logits
    model.sti.close()
    return logits


def test_tokens_run_the_submodel_of_their_prompt(store: ShardStore, model: Any, submodels: Any) -> None:
    expected = logits_at_once(store, submodels[0])
    cache = model(IDS[:, :20], use_cache=True).past_key_values
    for token in range(20, 24):
        logits = model(IDS[:, token : token + 1], past_key_values=cache, use_cache=True).logits
        assert torch.allclose(logits[:, 0], expected[:, token], atol=1e-5)
        if token == 21:
            model(IDS[:, :1])  # another text in between, by another submodel


def test_a_cache_is_cropped_and_reordered(store: ShardStore, model: Any, submodels: Any) -> None:
    expected = logits_at_once(store, submodels[0])
    cache = model(IDS[:, :22], use_cache=True).past_key_values
    cache.crop(-2)
    cache.reorder_cache(torch.tensor([1, 0]))
    logits = model(IDS[[1, 0], 20:21], past_key_values=cache).logits
    assert torch.allclose(logits[:, 0], expected[[1, 0], 20], atol=1e-5)


def test_an_empty_cache_says_nothing(store: ShardStore, model: Any, submodels: Any) -> None:
    expected = logits_at_once(store, submodels[0])
    for cache in (DynamicCache(), DynamicCache(config=model.config)):
        logits = model(IDS[:, :20], past_key_values=cache).logits
        assert torch.allclose(logits, expected[:, :20], atol=1e-5)


def test_generate_is_what_the_submodel_of_the_prompt_would_write(
    store: ShardStore, model: Any, submodels: Any
) -> None:
    settings = {"max_new_tokens": 4, "do_sample": False, "pad_token_id": 1, "eos_token_id": None}
    pinned = running(store, plan_with(store, submodels[0]))
    expected = pinned.generate(IDS[:, :20], use_cache=False, **settings)
    pinned.sti.close()
    assert torch.equal(model.generate(IDS[:, :20], **settings), expected)
    assert torch.equal(model.generate(IDS[:, :20], num_beams=1, **settings), expected)


def test_a_cache_of_another_submodel_is_refused(store: ShardStore, model: Any) -> None:
    other = running(store, plan_with(store, (1, 2)))
    cache = other(IDS[:, :20], use_cache=True).past_key_values
    other.sti.close()
    for _ in range(2):
        with pytest.raises(UnsupportedUseError, match=r"cache was made by a submodel of 1 x 2"):
            model(IDS[:, 20:21], past_key_values=cache)
    model.sti.use(plan_with(store, (3, 2)))
    with pytest.raises(UnsupportedUseError, match=r"1 x 2"):
        model(IDS[:, 20:21], past_key_values=cache)


@pytest.mark.parametrize("model_class", [GemmaForCausalLM, Olmo2ForCausalLM])
def test_a_cache_has_heads_where_slices_are_none(model_class: type[PreTrainedModel], tmp_path: Path) -> None:
    store = store_of(tiny_model(model_class), tmp_path / "store")
    assert not store.grid.droppable
    short, long = (plan_with(store, (depth, store.grid.slices)) for depth in (3, 2))
    model = planned_by(store, lambda config, workload: long if workload.tokens > 16 else short, seq_len=20)
    expected = logits_at_once(store, long.submodel)
    cache = model(IDS[:, :20], use_cache=True).past_key_values
    for token in range(20, 24):
        logits = model(IDS[:, token : token + 1], past_key_values=cache, use_cache=True).logits
        assert torch.allclose(logits[:, 0], expected[:, token], atol=1e-5)
    model.sti.use(short)
    with pytest.raises(UnsupportedUseError, match=r"cache was made by a submodel of 2 x 8"):
        model(IDS[:, 20:21], past_key_values=cache)
    model.sti.close()


def test_what_a_cache_holds_is_part_of_the_work() -> None:
    cache = DynamicCache(config=STOCK.config)
    assert cached_tokens(None) == cached_tokens(cache) == 0
    STOCK(IDS[:, :20], past_key_values=cache)
    assert cached_tokens(cache) == 32
    workload = workload_of(STOCK.config, get_architecture(STOCK.config), {"input_ids": IDS, "past_key_values": cache})
    assert workload == Workload(24, 2, 32)
