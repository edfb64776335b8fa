"""Models of several stacks, each of which runs from a session of its own, against stock ones."""

from __future__ import annotations

import copy
import gc
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPForImageClassification, CLIPModel, SiglipForImageClassification, SiglipModel

from eval import accounting
from sti_hf.errors import InfeasibleLatencyError, SessionClosedError, UnsupportedUseError
from sti_hf.model import get_architecture
from sti_hf.runtime.session import tensor_bytes
from sti_hf.shards.reading import read_quantized_layer
from tests.integrations.checkpoints import STOCK
from tests.models import tiny_config, tiny_inputs, tiny_model
from tests.runtime.sessions import store_of

CLASSES = (CLIPModel, SiglipModel, CLIPForImageClassification, SiglipForImageClassification)


@pytest.fixture(params=CLASSES, ids=lambda each: each.__name__)
def stock(request: pytest.FixtureRequest) -> Any:
    # A classifier of images has one of the stacks.
    return tiny_model(request.param, num_labels=5) if "Image" in request.param.__name__ else tiny_model(request.param)


@pytest.fixture
def model(stock: Any, tmp_path: Path) -> Iterator[Any]:
    store = store_of(stock, tmp_path / "store")
    model = type(stock).from_pretrained(store.path, sti_config=STOCK)
    yield model
    model.sti.close()


def answers(model: Any, **options: Any) -> torch.Tensor:
    inputs = tiny_inputs(model, **options)
    with torch.no_grad():
        output = model(**inputs)
    return output.logits if "logits" in output else output.logits_per_image


def test_the_full_grid_is_the_stock_model(stock: Any, model: Any) -> None:
    for batch in (1, 3):
        assert torch.allclose(answers(model, batch=batch), answers(stock, batch=batch), atol=1e-5)
    assert model.num_parameters() == stock.num_parameters()


def test_a_stack_at_a_time(stock: Any, model: Any) -> None:
    inputs = tiny_inputs(stock)
    for name, session in model.sti.stacks.items():
        part, own = model.get_submodule(name), stock.get_submodule(name)
        names = {"pixel_values"} if name == "vision_model" else {"input_ids", "attention_mask"}
        given = {key: value for key, value in inputs.items() if key in names}
        with torch.no_grad():
            assert torch.allclose(part(**given)[0], own(**given)[0], atol=1e-5)
        assert part.sti is session and session.last_run is not None


def test_at_any_fidelity_it_computes_what_its_codes_say(tmp_path: Path) -> None:
    stock = tiny_model(CLIPModel)
    store = store_of(stock, tmp_path / "store")
    model: Any = CLIPModel.from_pretrained(store.path, sti_config={**STOCK, "fidelity": 3})
    for name, stack in store.stacks.items():
        part = stock.get_submodule(name)
        architecture = get_architecture(part.config)
        for layer, linears in enumerate(architecture.linears(part)):
            shards = read_quantized_layer(stack, layer).dequantize(3)
            for matrix in architecture.matrices:
                rows, first = stack.grid.matrix_rows[matrix.name], stack.grid.first_row[matrix.name]
                weight = shards[:, first : first + rows].reshape(-1, stack.grid.row_length)
                linears[matrix.name].weight.data = weight.t() if matrix.by_columns else weight
    assert torch.allclose(answers(model), answers(stock), atol=1e-5)
    model.sti.close()


def test_t_and_s_are_shared_in_proportion_to_the_weights(tmp_path: Path) -> None:
    store = store_of(tiny_model(CLIPModel), tmp_path / "store")
    asked = {"target_latency": 0.3, "preload_budget": 60_000, "memory_budget": 50_000_000, "compute_dtype": "float32"}
    model: Any = CLIPModel.from_pretrained(store.path, sti_config=asked)
    weights = [stack.grid.weights for stack in store.stacks.values()]
    for session, share in zip(model.sti.stacks.values(), np.array(weights) / sum(weights)):
        assert session.plan.target_latency == pytest.approx(0.3 * share)
        assert session.plan.preload_budget == int(60_000 * share)
    answers(model)
    memory = model.sti.memory()
    assert memory["preload"] <= 60_000
    assert memory["resident"] >= tensor_bytes(model)
    assert memory["peak"] >= sum(memory[name] for name in ("resident", "preload", "staging"))
    model.sti.close()


def test_replan_is_for_all_stacks_or_for_none(tmp_path: Path) -> None:
    store = store_of(tiny_model(CLIPModel), tmp_path / "store")
    asked = {**STOCK, "strict": True, "strategy": "std_pipeline"}
    model: Any = CLIPModel.from_pretrained(store.path, sti_config=asked)
    before = answers(model)
    model.sti.replan(target_latency=2.0)
    assert sum(session.plan.target_latency for session in model.sti.stacks.values()) == pytest.approx(2.0)
    texts, images = model.sti.stacks.values()

    def refuse(*arguments: Any) -> None:
        raise InfeasibleLatencyError("No plan keeps it.")

    images.replan, plan = refuse, texts.plan.target_latency
    with pytest.raises(InfeasibleLatencyError):
        model.sti.replan(target_latency=3.0)
    assert texts.plan.target_latency == plan and model.sti.config.target_latency == 2.0
    assert torch.equal(answers(model), before)
    model.sti.close()


def test_copies_and_pickles_open_the_store_again(model: Any) -> None:
    expected = answers(model)
    for again in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert torch.equal(answers(again), expected)
        again.sti.close()
    with pytest.raises(UnsupportedUseError):
        copy.deepcopy(next(iter(model.sti.stacks.values())))
    for path in model.sti.stacks:
        with pytest.raises(UnsupportedUseError, match="copy the model"):
            copy.deepcopy(model.get_submodule(path))


def test_what_each_stack_has_of_its_own(model: Any) -> None:
    for name in ("plan", "last_run"):
        with pytest.raises(AttributeError, match=rf"vision_model\.sti\.{name}"):
            getattr(model.sti, name)
    assert not hasattr(model.sti, "nothing")


def test_closing_and_deleting_give_everything_back(tmp_path: Path) -> None:
    store = store_of(tiny_model(CLIPModel), tmp_path / "store")
    gc.collect()
    before = accounting.threads(), accounting.descriptors()
    with CLIPModel.from_pretrained(store.path, sti_config=STOCK).sti as session:
        assert session.stacks
    model: Any = CLIPModel.from_pretrained(store.path, sti_config=STOCK)
    answers(model)
    model.sti.close()
    with pytest.raises(SessionClosedError):
        answers(model)
    del model, session
    model = CLIPModel.from_pretrained(store.path, sti_config=STOCK)
    del model
    gc.collect()
    assert (accounting.threads(), accounting.descriptors()) == before


def test_a_class_without_the_stacks_of_the_store(tmp_path: Path) -> None:
    store = store_of(tiny_model(CLIPModel), tmp_path / "store")
    with pytest.raises(UnsupportedUseError, match="has the stacks vision_model, and the store"):
        CLIPForImageClassification.from_pretrained(store.path, config=tiny_config("clip"), sti_config=STOCK)
