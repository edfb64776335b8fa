"""By which plans a text is written, and what is told of it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from transformers import DynamicCache, LlamaForCausalLM

from sti_hf import STIConfig
from sti_hf.errors import PlanError
from sti_hf.integrations.store_model import load_model_on
from sti_hf.runtime.session import STISession
from sti_hf.shards.store import ShardStore
from tests.models import tiny_model
from tests.runtime.sessions import EXACT, Planned, device, store_of

STOCK = tiny_model(LlamaForCausalLM, max_position_embeddings=128)
IDS = torch.randint(3, 200, (1, 40), generator=torch.Generator().manual_seed(0))
SETTINGS: dict[str, Any] = {"do_sample": False, "pad_token_id": 1, "eos_token_id": None}
PROMPT_T, TOKEN_T = 0.05, 0.02


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return store_of(STOCK, tmp_path_factory.mktemp("plans") / "store")


def loaded(store: ShardStore, **fields: Any) -> Any:
    """The store's model, with real plans for a slow device, of its vocabulary, too."""
    strips, config = store.vocabulary, STIConfig(**{"target_latency": PROMPT_T, "preload_budget": 8000, **fields})
    assert strips is not None
    slow = device()
    session = STISession(store, config, Planned(store, slow), EXACT, vocabulary=Planned(strips, slow))
    return load_model_on(store, session)


@pytest.fixture(params=[None, TOKEN_T], ids=["as the prompt", "by a T of their own"])
def model(store: ShardStore, request: pytest.FixtureRequest) -> Iterator[Any]:
    model = loaded(store, target_token_latency=request.param)
    yield model
    model.sti.close()


def plans_of(model: Any, tokens: int = 5) -> list[Any]:
    """The plans of a prompt's forward and of each further token."""
    cache, plans = DynamicCache(config=model.config), []
    for ids in (IDS[:, :20], *IDS[:, 20 : 20 + tokens].split(1, dim=1)):
        model(ids, past_key_values=cache, use_cache=True)
        plans.append((model.sti.plan, model.sti.vocabulary_plan))
    return plans


def test_all_further_tokens_run_by_one_plan_of_the_prompts_submodel(model: Any) -> None:
    (prompt, of_vocabulary), *steps = plans_of(model)
    assert len({id(plan) for plan, _ in steps}) == len({id(plan) for _, plan in steps}) == 1
    step, vocabulary_step = steps[0]
    assert step.submodel == prompt.submodel
    if model.sti.config.target_token_latency is None:
        assert step is prompt and vocabulary_step is of_vocabulary
    else:
        assert step.workload.tokens == 1
        assert step.target_latency + vocabulary_step.target_latency == pytest.approx(TOKEN_T)
        assert step.predicted_latency < prompt.predicted_latency


def test_what_stands_between_the_tokens_of_a_text_does_not_change_it(store: ShardStore, model: Any) -> None:
    def logits(between: Any) -> torch.Tensor:
        cache = DynamicCache(config=model.config)
        found = [model(IDS[:, :20], past_key_values=cache, use_cache=True).logits[:, -1]]
        for token in range(20, 25):
            between()
            output = model(IDS[:, token : token + 1], past_key_values=cache, use_cache=True)
            found.append(output.logits[:, -1])
        return torch.cat(found)

    expected = logits(lambda: None)
    assert torch.equal(logits(lambda: model(IDS[:, :7])), expected)
    assert torch.equal(logits(lambda: plans_of(model, 2)), expected)


def test_a_copied_cache_goes_on_by_a_plan_of_its_submodel(model: Any) -> None:
    cache = DynamicCache(config=model.config)
    model(IDS[:, :20], past_key_values=cache, use_cache=True)
    submodel = model.sti.plan.submodel
    other = copy.deepcopy(cache)
    first = model(IDS[:, 20:21], past_key_values=cache, use_cache=True).logits
    second = model(IDS[:, 20:21], past_key_values=other, use_cache=True).logits
    assert model.sti.plan.submodel == submodel
    assert first.shape == second.shape


def test_a_second_prompt_keeps_the_submodel(model: Any) -> None:
    cache = DynamicCache(config=model.config)
    model(IDS[:, :4], past_key_values=cache, use_cache=True)
    submodel = model.sti.plan.submodel
    model(IDS[:, 4:40], past_key_values=cache, use_cache=True)
    assert model.sti.plan.submodel == submodel and model.sti.plan.workload.tokens == 64
    model(IDS[:, :1], past_key_values=cache, use_cache=True)
    assert cache.get_seq_length() == 41


def test_what_a_text_took_is_told(model: Any) -> None:
    assert model.sti.last_generation is None
    text = model.generate(IDS[:, :20], **SETTINGS, max_new_tokens=6)
    generation = model.sti.last_generation
    assert text.shape[1] == 26 and len(generation.steps) == 5
    assert generation.time_to_first_token == generation.prompt.total > 0
    assert (generation.token_seconds > 0).all()
    assert all(step.tokens == 1 for step in generation.steps) and generation.prompt.tokens == 20
    read = [generation.prompt.bytes_read, *(step.bytes_read for step in generation.steps)]
    assert generation.bytes_read == sum(read)
    plans = model.sti.plan, model.sti.vocabulary_plan
    assert set(read[2:]) == {sum(plan.streamed_bytes for plan in plans)}
    assert np.array_equal(generation.steps[-1].bits, plans[0].bits)
    model.generate(IDS[:, :3], **SETTINGS, max_new_tokens=2)
    assert model.sti.last_generation.prompt.tokens == 3 and len(model.sti.last_generation.steps) == 1


def test_no_buffer_is_made_anew_between_tokens(model: Any) -> None:
    cache = DynamicCache(config=model.config)
    model(IDS[:, :20], past_key_values=cache, use_cache=True)
    model(IDS[:, 20:21], past_key_values=cache, use_cache=True)
    engines = model.sti._engines.layers, model.sti._engines.vocabulary
    before = [engine.streamer.prepared for engine in engines]
    for token in range(21, 30):
        model(IDS[:, token : token + 1], past_key_values=cache, use_cache=True)
    assert all(engine.streamer.prepared is prepared for engine, prepared in zip(engines, before))


def test_memory_counts_caches_that_are_in_use(model: Any) -> None:
    assert model.sti.memory()["cache"] == 0
    cache = DynamicCache(config=model.config)
    model(IDS[:, :20], past_key_values=cache, use_cache=True)
    layers, heads = model.sti.plan.submodel
    head_size = model.config.hidden_size // model.config.num_attention_heads
    expected = 2 * layers * heads * 20 * head_size * 4
    memory = model.sti.memory()
    assert memory["cache"] == expected
    assert memory["peak"] >= sum(memory[name] for name in ("resident", "preload", "staging", "working", "cache"))
    del cache
    assert model.sti.memory()["cache"] == 0


def test_texts_that_take_turns_are_told_apart(model: Any) -> None:
    one, other = (DynamicCache(config=model.config) for _ in range(2))
    model(IDS[:, :20], past_key_values=one, use_cache=True)
    model(IDS[:, :18], past_key_values=other, use_cache=True)
    for token in range(20, 23):
        model(IDS[:, token : token + 1], past_key_values=one, use_cache=True)
    told = model.sti.last_generation
    assert told.prompt.tokens == 20 and len(told.steps) == 3


def test_the_time_of_a_token_can_be_replanned(store: ShardStore) -> None:
    model, strips = loaded(store), store.vocabulary
    assert strips is not None
    model.sti.replan(target_token_latency=TOKEN_T)
    (prompt, _), *steps = plans_of(model, 2)
    assert (
        steps[0][0].target_latency
        < prompt.target_latency
        == pytest.approx(PROMPT_T * store.grid.weights / (store.grid.weights + strips.grid.weights))
    )
    model.sti.close()


def test_a_plan_of_another_store_is_refused(store: ShardStore, model: Any) -> None:
    with pytest.raises(PlanError, match="not for the layers of the store"):
        model.sti.use(model.sti.vocabulary_plan)
    whole = model.sti.plan
    with pytest.raises(PlanError, match="not for the layers of the store"):
        model.sti.use(replace(whole, streamed_bytes=whole.streamed_bytes + 4096))
    model.sti.use(whole)


def test_a_head_by_itself_takes_turns_with_replanning(store: ShardStore) -> None:
    model = loaded(store)
    states = torch.randn(1, 2, model.config.hidden_size)
    assert model.lm_head(states[:, :0]).shape == (1, 0, model.config.vocab_size)
    failures: list[BaseException] = []

    def heads() -> None:
        try:
            for _ in range(60):
                model.lm_head(states)
        except BaseException as error:
            failures.append(error)

    thread = threading.Thread(target=heads)
    thread.start()
    for turn in range(20):
        model.sti.replan(target_latency=(PROMPT_T, 2 * PROMPT_T)[turn % 2])
    thread.join()
    assert not failures
    model.sti.close()


def test_what_misses_its_share_says_so(store: ShardStore) -> None:
    with pytest.warns(UserWarning, match="That is of the vocabulary alone"):
        loaded(store, target_latency=1e-6).sti.close()
