"""Logits from the strips of the vocabulary are those of a stock model with the same weights."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sti_hf import STIConfig
from sti_hf.errors import InfeasibleLatencyError, SessionClosedError
from sti_hf.integrations.store_model import load_model_on
from sti_hf.model import get_architecture
from sti_hf.native import StreamError
from sti_hf.planning import OnePlan
from sti_hf.runtime.session import STISession
from sti_hf.shards.layout import FULL
from sti_hf.shards.partition import split_vocabulary
from sti_hf.shards.quantizers import get_quantizer
from sti_hf.shards.reorder import reorder_store
from sti_hf.shards.store import ShardStore
from sti_hf.shards.verification import verify_store
from tests.models import TASK_HEADS, tiny_inputs, tiny_model
from tests.runtime.sessions import EXACT, Planned, device, logits_of, plan_of, random_bits, stock_with_plan_weights
from tests.runtime.sessions import store_of as stored

ENDINGS = ("ForCausalLM", "LMHeadModel", "ForMaskedLM")
FAMILIES = ("llama", "gemma3_text", "gpt2", "gpt_neox", "opt", "bert", "electra")
"""Tied and not, with a bias and without, of other widths than the layers."""


def language_model(model_type: str) -> Any:
    return tiny_model(next(head for head in TASK_HEADS[model_type] if head.__name__.endswith(ENDINGS)))


@pytest.fixture(scope="module", params=FAMILIES)
def stock(request: pytest.FixtureRequest) -> Any:
    return language_model(request.param)


@pytest.fixture(scope="module")
def store(stock: Any, tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return stored(stock, tmp_path_factory.mktemp("vocabulary") / "store")


def bits_of_strips(store: ShardStore, seed: int = 3) -> np.ndarray:
    strips = store.vocabulary
    assert strips is not None and FULL not in strips.fidelities
    return random_bits(strips, seed)


def running(store: ShardStore, bits: np.ndarray, of_strips: np.ndarray, preload: float = 0.4) -> Any:
    """The store's model at these fidelities of layers and strips."""
    strips = store.vocabulary
    assert strips is not None
    vocabulary = OnePlan(plan_of(strips, of_strips, preload))
    session = STISession(store, STIConfig(), OnePlan(plan_of(store, bits, preload)), EXACT, vocabulary=vocabulary)
    return load_model_on(store, session)


def expected_model(stock: Any, store: ShardStore, bits: np.ndarray, of_strips: np.ndarray) -> Any:
    """A stock model whose layers, and whose head alone, have the weights of these fidelities."""
    model = type(stock)(stock.config).eval()
    model.load_state_dict(stock.state_dict())
    stock_with_plan_weights(model, store, bits)
    strips, quantizer = store.vocabulary, get_quantizer(store.index.quantizer)
    assert strips is not None
    (path,) = (path for path, _ in model.named_modules() if path in get_architecture(model.config).lm_decoders)
    decoder = model.get_submodule(path)
    rows = []
    for layer in range(strips.grid.layers):
        quantized = quantizer.vocabulary.quantize_layer(
            layer, split_vocabulary(decoder.weight.detach(), strips.grid, layer), strips.grid
        )
        rows += [quantized.dequantize(int(fidelity))[k] for k, fidelity in enumerate(of_strips[layer])]
    decoder.weight = nn.Parameter(torch.cat(rows)[: decoder.out_features])  # not the embeddings', which stay full
    return model


def inputs_of(model: Any) -> dict[str, torch.Tensor]:
    return {name: value for name, value in tiny_inputs(model).items() if name != "labels"}


@pytest.mark.parametrize("preload", [0.0, 0.4, 1.0])
def test_logits_are_those_of_a_stock_model_with_these_weights(stock: Any, store: ShardStore, preload: float) -> None:
    bits, of_strips = random_bits(store, 1), bits_of_strips(store)
    model, inputs = running(store, bits, of_strips, preload), inputs_of(stock)
    with torch.no_grad():
        expected = logits_of(expected_model(stock, store, bits, of_strips)(**inputs))
    for _ in range(2):
        logits = logits_of(model(**inputs))
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)
        assert logits.is_contiguous()
    model.sti.close()


@pytest.fixture
def llama(tmp_path: Path) -> Iterator[Any]:
    store = stored(language_model("llama"), tmp_path / "store")
    model = running(store, random_bits(store, 1), bits_of_strips(store), 0.0)
    yield model
    model.sti.close()


def test_bytes_and_memory_are_those_of_layers_and_strips(llama: Any) -> None:
    llama(**inputs_of(llama))
    strips, layers = llama.sti.vocabulary_plan, llama.sti.plan
    assert strips.streamed_bytes > 0
    assert llama.sti.last_run.bytes_read == layers.streamed_bytes + strips.streamed_bytes
    memory = llama.sti.memory()
    assert memory["staging"] == layers.staging_bytes + strips.staging_bytes
    assert memory["peak"] >= sum(memory[name] for name in ("resident", "preload", "staging", "working"))
    llama.sti.close()
    with pytest.raises(SessionClosedError):
        llama.lm_head(torch.zeros(1, 1, llama.config.hidden_size))


def test_a_head_that_is_called_by_itself_gives_its_logits(llama: Any) -> None:
    inputs = inputs_of(llama)
    states = llama.model(**inputs).last_hidden_state
    torch.testing.assert_close(llama.lm_head(states), llama(**inputs).logits, atol=1e-5, rtol=1e-5)
    one = llama.lm_head(states[0, 0])
    torch.testing.assert_close(one, llama.lm_head(states)[0, 0], atol=1e-5, rtol=1e-5)


def test_full_layers_have_a_full_vocabulary(tmp_path: Path) -> None:
    stock = language_model("llama")
    store = stored(stock, tmp_path / "store")
    model = running(store, np.full((store.grid.layers, store.grid.slices), FULL), bits_of_strips(store))
    with torch.no_grad():
        torch.testing.assert_close(model(**inputs_of(stock)).logits, stock(**inputs_of(stock)).logits)
    model.sti.close()


def test_damaged_strips_are_found_and_never_run(tmp_path: Path) -> None:
    store = stored(language_model("llama"), tmp_path / "store")
    strips = store.vocabulary
    assert strips is not None and verify_store(store) == []
    with strips.layer_path(0).open("r+b") as file:
        file.seek(int(strips.layouts[0].piece_offset[2, 3]) + 40)
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    (damage,) = verify_store(store)
    assert damage.file == strips.layer_path(0).name and damage.what == "plane 2 of shard (0, 3) of vocabulary"
    model = running(store, random_bits(store, 1), np.full((strips.grid.layers, strips.grid.slices), 4), 0.0)
    with pytest.raises(StreamError, match="vocabulary-00001"):
        model(**inputs_of(model))
    model.sti.close()


def test_a_store_in_another_order_has_the_same_strips(tmp_path: Path) -> None:
    stock = language_model("llama")
    store = stored(stock, tmp_path / "store")
    of_strips, order = bits_of_strips(store), [list(range(store.grid.slices))[::-1]] * store.grid.layers
    bits = np.full((store.grid.layers, store.grid.slices), 4)
    before = running(store, bits, of_strips)
    expected = before(**inputs_of(before)).logits
    before.sti.close()
    model = running(reorder_store(store, get_architecture(stock.config), order), bits, of_strips)
    torch.testing.assert_close(model(**inputs_of(model)).logits, expected, atol=1e-5, rtol=1e-5)
    model.sti.close()


def test_a_new_target_is_shared_or_nothing_changes(tmp_path: Path) -> None:
    store = stored(language_model("llama"), tmp_path / "store")
    strips = store.vocabulary
    assert strips is not None
    session = STISession(
        store, STIConfig(2.0, strict=True), Planned(store, device()), EXACT, vocabulary=Planned(strips, device())
    )
    model = load_model_on(store, session)
    session.replan(target_latency=1.0)
    assert session.vocabulary_plan is not None
    assert session.plan.target_latency + session.vocabulary_plan.target_latency == pytest.approx(1.0)
    plans = session.plan, session.vocabulary_plan
    with pytest.raises(InfeasibleLatencyError):
        session.replan(target_latency=1e-4)
    assert (session.plan, session.vocabulary_plan) == plans and session.config.target_latency == 1.0
    model(**inputs_of(model))
    session.close()
