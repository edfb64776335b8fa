"""Language models of every family write, token for token, what stock ones write."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache

from sti_hf.errors import PlanError, UnsupportedUseError
from sti_hf.shards.layout import FULL
from sti_hf.shards.store import ShardStore
from tests.model.submodels import cut_down
from tests.models import DECODERS, LAYERS, TASK_HEADS, tiny_model
from tests.runtime.sessions import plan_of, running, store_of

PROMPT, NEW = 11, 64
SETTINGS: dict[str, Any] = {"do_sample": False, "pad_token_id": 1, "eos_token_id": None}


ONE_HEAD = "gemma3_text, one key and value head"
"""Gemma 3 of 270M and of 1B."""


def language_model(name: str) -> Any:
    model_type = name.split(",")[0]
    # More positions than the other tests need, and windows that are passed.
    (head,) = (each for each in TASK_HEADS[model_type] if each.__name__.endswith(("ForCausalLM", "LMHeadModel")))
    names = ("max_position_embeddings", *(["n_positions"] if model_type == "gpt2" else []))
    window = {"sliding_window": 8} if model_type == "mistral" else {}
    keys = {"num_key_value_heads": 1} if name == ONE_HEAD else {}
    return tiny_model(head, **dict.fromkeys(names, PROMPT + NEW + 8), **window, **keys)


@pytest.fixture(scope="module", params=[*DECODERS, ONE_HEAD])
def stock(request: pytest.FixtureRequest) -> Any:
    return language_model(request.param)


@pytest.fixture(scope="module")
def store(stock: Any, tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return store_of(stock, tmp_path_factory.mktemp("language") / "store")


def whole(store: ShardStore, layers: int, slices: int) -> np.ndarray:
    """The fidelities of a submodel whose shards are full."""
    bits = np.zeros((store.grid.layers, store.grid.slices), dtype=np.int64)
    bits[:layers, :slices] = FULL
    return bits


@pytest.fixture
def model(store: ShardStore) -> Iterator[Any]:
    model = running(store, plan_of(store, whole(store, LAYERS, store.grid.slices), 0.4))
    yield model
    model.sti.close()


def prompts(padded: bool = True) -> dict[str, torch.Tensor]:
    """Three texts, of which two begin with padding."""
    ids = torch.randint(3, 200, (3, PROMPT), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    if padded:
        mask[1, :4], mask[2, :2] = 0, 0
    return {"input_ids": ids.masked_fill(mask == 0, 1), "attention_mask": mask}


@pytest.mark.parametrize(
    "settings",
    [
        {"max_new_tokens": NEW},
        {"max_new_tokens": 12, "num_beams": 2},
        {"max_new_tokens": 12, "cache_implementation": "static"},
        {"max_new_tokens": 12, "use_cache": False},
    ],
    ids=["greedy", "beams", "static", "uncached"],
)
def test_it_writes_what_the_stock_model_writes(stock: Any, model: Any, settings: dict[str, Any]) -> None:
    expected = stock.generate(**prompts(), **SETTINGS, **settings)
    assert expected.shape[1] == PROMPT + settings["max_new_tokens"]
    assert torch.equal(model.generate(**prompts(), **SETTINGS, **settings), expected)


@pytest.mark.parametrize("length", [1, 5, PROMPT])
def test_logits_with_a_cache_are_those_without(model: Any, length: int) -> None:
    ids = torch.randint(3, 200, (2, length + 20), generator=torch.Generator().manual_seed(1))
    expected = model(ids, use_cache=False).logits
    cache = model(ids[:, :length], use_cache=True).past_key_values
    for token in range(length, length + 20):
        logits = model(ids[:, token : token + 1], past_key_values=cache, use_cache=True).logits
        torch.testing.assert_close(logits[:, 0], expected[:, token], atol=1e-5, rtol=1e-5)


def test_two_turns_on_one_cache(stock: Any, model: Any) -> None:
    def conversation(of: Any) -> torch.Tensor:
        cache = DynamicCache(config=of.config)
        first = of.generate(**prompts(padded=False), **SETTINGS, past_key_values=cache, max_new_tokens=8)
        said = torch.cat([first, torch.full((3, 4), 17)], dim=1)
        mask = torch.ones_like(said)
        answer: torch.Tensor = of.generate(
            said, attention_mask=mask, **SETTINGS, past_key_values=cache, max_new_tokens=8
        )
        return answer

    assert torch.equal(conversation(model), conversation(stock))


def test_a_submodel_writes_what_a_stock_model_without_the_rest_writes(stock: Any, store: ShardStore) -> None:
    slices = store.grid.widths[-2:][0]
    model = running(store, plan_of(store, whole(store, 2, slices)))
    rest = cut_down(stock, 2, slices, [list(range(store.grid.slices))] * LAYERS)
    expected = rest.generate(**prompts(), **SETTINGS, max_new_tokens=16)
    assert torch.equal(model.generate(**prompts(), **SETTINGS, max_new_tokens=16), expected)
    model.sti.close()


def test_slices_that_are_not_droppable_are_never_left_out(stock: Any, store: ShardStore) -> None:
    if store.grid.droppable:
        return
    with pytest.raises(PlanError, match="layers can only run whole"):
        running(store, plan_of(store, whole(store, 2, store.grid.slices - 1)))
    model = running(store, plan_of(store, whole(store, 2, store.grid.slices)))
    plan = model.sti.plan
    with pytest.raises(PlanError, match="layers can only run whole"):
        model.sti.use(plan_of(store, whole(store, 1, 1)))
    assert model.sti.plan is plan
    model.sti.close()


def test_a_draft_of_the_first_layers_is_refused_and_leaves_nothing_behind(stock: Any, model: Any) -> None:
    for _ in range(2):
        with pytest.raises(UnsupportedUseError, match="without assistant_early_exit"):
            model.generate(input_ids=prompts()["input_ids"][:1], **SETTINGS, max_new_tokens=4, assistant_early_exit=1)
    expected = stock.generate(**prompts(), **SETTINGS, max_new_tokens=4)
    assert torch.equal(model.generate(**prompts(), **SETTINGS, max_new_tokens=4), expected)
