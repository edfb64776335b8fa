"""`generate` as people use it, at full fidelity and from strips of the vocabulary, is that of a stock model."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import (
    LlamaForCausalLM,
    StoppingCriteria,
    StoppingCriteriaList,
    set_seed,
)

from sti_hf import STIConfig
from sti_hf.integrations.store_model import load_model_on
from sti_hf.planning import OnePlan
from sti_hf.runtime.session import STISession
from tests.models import tiny_model
from tests.runtime.sessions import EXACT, plan_of, store_of
from tests.runtime.test_vocabulary import expected_model

STOCK = tiny_model(LlamaForCausalLM, max_position_embeddings=96)
IDS = torch.randint(3, 200, (2, 9), generator=torch.Generator().manual_seed(3))
SETTINGS: dict[str, Any] = {"pad_token_id": 1, "eos_token_id": None, "max_new_tokens": 10}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Any, Any]]:
    """A model that runs from shards of 5 bits, and the stock model with these weights."""
    store = store_of(STOCK, tmp_path_factory.mktemp("use") / "store")
    strips = store.vocabulary
    assert strips is not None
    bits = np.full((store.grid.layers, store.grid.slices), 5)
    of_strips = np.full((strips.grid.layers, strips.grid.slices), 5)
    session = STISession(
        store,
        STIConfig(),
        OnePlan(plan_of(store, bits, 0.5)),
        EXACT,
        vocabulary=OnePlan(plan_of(strips, of_strips, 0.5)),
    )
    yield load_model_on(store, session), expected_model(STOCK, store, bits, of_strips)
    session.close()


def same(models: tuple[Any, Any], **settings: Any) -> torch.Tensor:
    """What both write, which must be the same."""
    texts = []
    for model in models:
        set_seed(7)
        texts.append(model.generate(IDS, attention_mask=torch.ones_like(IDS), **{**SETTINGS, **settings}))
    assert torch.equal(*texts)
    return texts[0]


@pytest.mark.parametrize(
    "settings",
    [
        {"do_sample": False},
        {"do_sample": True, "top_k": 20, "temperature": 0.8},
        {"do_sample": True, "num_return_sequences": 3},
        {"do_sample": False, "num_beams": 3, "num_return_sequences": 2},
        {"do_sample": False, "repetition_penalty": 1.3, "no_repeat_ngram_size": 2},
        {"do_sample": False, "prompt_lookup_num_tokens": 2},
    ],
    ids=["greedy", "sampled", "several", "beams", "processors", "prompt lookup"],
)
def test_settings(models: tuple[Any, Any], settings: dict[str, Any]) -> None:
    if "prompt_lookup_num_tokens" in settings:
        texts = [model.generate(IDS[:1], **{**SETTINGS, **settings}) for model in models]
        assert torch.equal(*texts)
        return
    text = same(models, **settings)
    assert len(text) == len(IDS) * settings.get("num_return_sequences", 1)


class AfterThree(StoppingCriteria):
    """Ends a text three tokens behind its prompt."""

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        return torch.full((len(input_ids),), input_ids.shape[1] >= IDS.shape[1] + 3)


def test_stopping_criteria(models: tuple[Any, Any]) -> None:
    assert same(models, do_sample=False, stopping_criteria=StoppingCriteriaList([AfterThree()])).shape[1] == 12


def test_a_draft_by_another_model(models: tuple[Any, Any]) -> None:
    draft = tiny_model(LlamaForCausalLM, seed=5, max_position_embeddings=96, num_hidden_layers=1)
    greedy = models[1].generate(IDS[:1], do_sample=False, **SETTINGS)
    for model in models:
        assert torch.equal(model.generate(IDS[:1], do_sample=False, assistant_model=draft, **SETTINGS), greedy)
    model, stock = models
    drafted = stock.generate(IDS[:1], do_sample=False, assistant_model=model, **SETTINGS)
    assert torch.equal(drafted, greedy), "and as the one that drafts"


class Words:
    """A streamer that keeps what comes, in the order in which it does."""

    def __init__(self) -> None:
        self.tokens: list[int] = []
        self.ended = threading.Event()

    def put(self, value: torch.Tensor) -> None:
        """The prompt, at first, and then each token."""
        self.tokens += value.flatten().tolist()

    def end(self) -> None:
        """The text is whole."""
        self.ended.set()


def test_words_come_in_another_thread(models: tuple[Any, Any]) -> None:
    model, stock = models
    words = Words()
    settings = {**SETTINGS, "do_sample": False, "streamer": words}
    thread = threading.Thread(target=model.generate, args=(IDS[:1],), kwargs=settings)
    thread.start()
    thread.join()
    assert words.ended.is_set()
    assert words.tokens == stock.generate(IDS[:1], do_sample=False, **SETTINGS)[0].tolist()


def test_the_loss_of_a_text(models: tuple[Any, Any]) -> None:
    model, stock = models
    with torch.no_grad():
        ours, expected = (each(IDS, labels=IDS) for each in (model, stock))
    torch.testing.assert_close(ours.loss, expected.loss, atol=1e-5, rtol=1e-5)
    last = model(IDS, logits_to_keep=1).logits
    torch.testing.assert_close(last[:, 0], expected.logits[:, -1], atol=1e-5, rtol=1e-5)
