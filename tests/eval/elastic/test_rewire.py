"""Heads and neurons in order of importance."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import BertForSequenceClassification, MPNetForSequenceClassification

from eval.elastic.importance import FirstOrderImportance, first_order_importance
from eval.elastic.rewire import rewire
from eval.elastic.task_loss import labelled_loss
from sti_hf.model import get_architecture
from sti_hf.profiling.examples import Batch, Examples
from tests.eval.elastic.test_submodels import CLASSIFIERS
from tests.models import FFN, HEADS, LAYERS, tiny_inputs, tiny_model
from tests.tasks import TASK


def examples_of(model: Any, count: int = 6) -> tuple[Examples, list[Batch]]:
    """Labelled examples in two batches."""
    labels = torch.arange(count).remainder(2).numpy()
    examples = Examples(tuple((str(index),) for index in range(count)), labels, labels)
    half = count // 2
    batches = [
        Batch(tiny_inputs(model, batch=half, seed=seed), torch.arange(seed * half, (seed + 1) * half).numpy())
        for seed in (0, 1)
    ]
    return examples, batches


def measured(model: Any) -> FirstOrderImportance:
    examples, batches = examples_of(model)
    return first_order_importance(model, batches, labelled_loss(TASK, examples, None))


def test_importance_is_the_slope_of_the_loss() -> None:
    """Each example's loss with a head or neuron a little weaker, by finite differences."""
    model = tiny_model(BertForSequenceClassification).double()
    examples, batches = examples_of(model)
    loss = labelled_loss(TASK, examples, None)
    found = first_order_importance(model, batches, loss)

    def losses() -> Tensor:
        with torch.no_grad():
            return torch.cat([loss(model(**batch.inputs).logits, batch) for batch in batches])

    before = losses()
    linears = get_architecture(model.config).linears(model)
    for layer, name, count, values in ((0, "o", HEADS, found.heads), (LAYERS - 1, "down", FFN, found.neurons)):
        weight = linears[layer][name].weight
        block = weight.shape[1] // count
        for index in (0, 1, count - 1):
            changed = weight.detach().clone()
            changed[:, index * block : (index + 1) * block] *= 1 - 1e-5
            whole, weight.data = weight.data, changed
            slope = ((losses() - before) / 1e-5).abs().mean()
            weight.data = whole
            assert values[layer, index] == pytest.approx(float(slope), rel=1e-3)


def test_measuring_leaves_the_model_as_it_was() -> None:
    model = tiny_model(BertForSequenceClassification)
    before = copy.deepcopy(model.state_dict())
    measured(model)
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(parameter.requires_grad and parameter.grad is None for parameter in model.parameters())


@pytest.mark.parametrize("model_class", CLASSIFIERS)
def test_rewired_models_compute_the_same(model_class: Any) -> None:
    model = tiny_model(model_class)
    inputs = tiny_inputs(model)
    generator = torch.Generator().manual_seed(0)
    importance = FirstOrderImportance(
        torch.rand(LAYERS, HEADS, generator=generator), torch.rand(LAYERS, FFN, generator=generator)
    )
    other = copy.deepcopy(model)
    rewire(other, importance)
    with torch.no_grad():
        assert torch.allclose(other(**inputs).logits, model(**inputs).logits, atol=1e-5)
    moved = [name for name, value in model.state_dict().items() if not torch.equal(value, other.state_dict()[name])]
    assert len(moved) >= 6 * LAYERS


@pytest.mark.parametrize("model_class", [BertForSequenceClassification, MPNetForSequenceClassification])
def test_the_most_important_stand_first(model_class: Any) -> None:
    model = tiny_model(model_class)
    before = measured(model)
    rewire(model, before)
    after = measured(model)
    torch.testing.assert_close(after.neurons, before.neurons.sort(dim=1, descending=True).values)
    if model_class is MPNetForSequenceClassification:  # one order of heads for all layers
        torch.testing.assert_close(after.heads.sum(0), before.heads.sum(0).sort(descending=True).values)
    else:
        torch.testing.assert_close(after.heads, before.heads.sort(dim=1, descending=True).values)


def test_labels_in_another_order() -> None:
    model = tiny_model(BertForSequenceClassification)
    examples, batches = examples_of(model)
    logits = torch.randn(3, 2)
    turned = labelled_loss(TASK, examples, torch.tensor([1, 0]))
    assert torch.equal(turned(logits.flip(1), batches[0]), labelled_loss(TASK, examples, None)(logits, batches[0]))
