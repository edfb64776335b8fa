"""The submodels that training runs, against stock models cut down, and the gradients that reach the whole model."""

from __future__ import annotations

import copy
import multiprocessing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    BertForSequenceClassification,
    LlamaForSequenceClassification,
    MPNetForSequenceClassification,
    Olmo2ForSequenceClassification,
)

from eval.elastic.fake_quantization import fake_quantized
from eval.elastic.submodels import Submodels
from sti_hf.errors import UnsupportedModelError
from sti_hf.model import architecture_of, get_architecture
from sti_hf.shards.layout import FULL
from tests.model.submodels import cut_down, silence
from tests.models import HEADS, KEY_VALUE_HEADS, LAYERS, TASK_HEADS, tiny_inputs, tiny_model


def can_be_elastic(model_type: str) -> bool:
    """Whether fine-tuning can cut the family: whole linears, and keys for every head."""
    return model_type not in KEY_VALUE_HEADS and not architecture_of(model_type).fused


IN_ORDER = [list(range(HEADS))] * LAYERS
CLASSIFIERS = [
    pytest.param(head, id=head.__name__)
    for heads in TASK_HEADS.values()
    for head in heads
    if head.__name__.endswith("ForSequenceClassification") and can_be_elastic(head.config_class.model_type)
]


@pytest.mark.parametrize("model_class", CLASSIFIERS)
def test_all_depths_of_a_width_are_the_models_without_the_rest(model_class: Any) -> None:
    model = tiny_model(model_class)
    inputs = tiny_inputs(model)
    submodels = Submodels(copy.deepcopy(model))
    whole = submodels.run(inputs, HEADS, [LAYERS]).logits[LAYERS]
    with torch.no_grad():
        assert torch.allclose(whole, model(**inputs).logits, atol=1e-6)
        for width in range(1, HEADS + 1):
            found = submodels.run(inputs, width, range(1, LAYERS + 1))
            assert len(found.states) == LAYERS + 1
            for depth, logits in found.logits.items():
                expected = cut_down(model, depth, width, IN_ORDER)(**inputs).logits
                assert torch.allclose(logits, expected, atol=1e-5)
        assert torch.equal(submodels.model(**inputs).logits, whole), "it is whole again"


@pytest.mark.parametrize("model_class", [BertForSequenceClassification, MPNetForSequenceClassification])
@pytest.mark.parametrize(("depth", "width"), [(LAYERS, HEADS), (LAYERS, 2), (2, 3)])
def test_gradients_are_those_of_the_model_with_the_rest_silenced(model_class: Any, depth: int, width: int) -> None:
    model = tiny_model(model_class)
    inputs = tiny_inputs(model)
    other = silence(model, depth, width, IN_ORDER)
    other(**inputs).logits.square().sum().backward()
    submodels = Submodels(model)
    submodels.run(inputs, width, [depth]).logits[depth].square().sum().backward()
    expected = {name: parameter.grad for name, parameter in other.named_parameters()}
    for name, parameter in model.named_parameters():
        if parameter.grad is None:
            assert expected.get(name) is None or not expected[name].any()
        elif name.endswith(("attn.o.weight", "output.dense.weight")):  # silenced by zeros, which have gradients
            columns = parameter.shape[1] * width // HEADS
            assert torch.allclose(parameter.grad[:, :columns], expected[name][:, :columns], atol=1e-5)
            assert not parameter.grad[:, columns:].any()
        else:
            assert torch.allclose(parameter.grad, expected[name], atol=1e-5)


def loss_of(submodels: Submodels, inputs: dict[str, Tensor], share: bool, forward: Any = None) -> Tensor:
    """A loss of several submodels."""
    total, embeddings = torch.zeros(()), None
    for width in (4, 2, 1):
        first = embeddings is None
        outputs = submodels.run(inputs, width, [2, 3], embeddings=embeddings, forward=forward if first else None)
        if share:
            embeddings = outputs.states[0]
        total = total + sum(logits.square().sum() for logits in outputs.logits.values())
        total = total + sum(state.square().mean() for state in outputs.states)
    return total


def test_shared_embeddings_have_the_same_gradients() -> None:
    model = tiny_model(MPNetForSequenceClassification)
    inputs = tiny_inputs(model)
    gradients = []
    for share in (False, True):
        one = copy.deepcopy(model)
        loss_of(Submodels(one), inputs, share).backward()
        gradients.append({name: parameter.grad for name, parameter in one.named_parameters()})
    for name, gradient in gradients[0].items():
        assert torch.allclose(gradient, gradients[1][name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("width", [HEADS, 2])
def test_every_shard_has_its_own_fidelity(width: int) -> None:
    model = tiny_model(BertForSequenceClassification)
    architecture, inputs = get_architecture(model.config), tiny_inputs(model)
    bits = np.random.default_rng(0).choice([2, 3, FULL], (LAYERS, HEADS))
    quantized = copy.deepcopy(model)
    for layer, linears in enumerate(architecture.linears(quantized)):
        for matrix in architecture.matrices:
            weight = linears[matrix.name].weight.data
            shards = weight.chunk(HEADS, dim=1 if matrix.by_columns else 0)
            for shard, fidelity in zip(shards, bits[layer].tolist()):
                shard.copy_(fake_quantized(shard.clone(), [fidelity], matrix.by_columns))
    with torch.no_grad():
        found = Submodels(copy.deepcopy(model)).run(inputs, width, [LAYERS], bits).logits[LAYERS]
        expected = cut_down(quantized, LAYERS, width, IN_ORDER)(**inputs).logits
        assert torch.allclose(found, expected, atol=1e-5)
        assert not torch.allclose(found, cut_down(model, LAYERS, width, IN_ORDER)(**inputs).logits, atol=1e-2)


@pytest.mark.parametrize(
    ("model_class", "keys"), [(Olmo2ForSequenceClassification, HEADS), (LlamaForSequenceClassification, 2)]
)
def test_models_that_cannot_be_cut_are_refused(model_class: Any, keys: int) -> None:
    with pytest.raises(UnsupportedModelError, match="Elastic fine-tuning cannot cut"):
        Submodels(tiny_model(model_class, num_key_value_heads=keys))


def test_processes_train_on_the_mean_of_their_gradients(tmp_path: Path) -> None:
    processes = multiprocessing.get_context("fork")
    found = processes.Queue()
    workers = [processes.Process(target=_train, args=(rank, tmp_path / "rendezvous", found)) for rank in (0, 1)]
    for worker in workers:
        worker.start()
    differences = [found.get(timeout=60) for _ in workers]
    for worker in workers:
        worker.join()
    assert differences == [0, 0]


def _train(rank: int, rendezvous: Path, found: Any) -> None:
    torch.distributed.init_process_group("gloo", init_method=f"file://{rendezvous}", rank=rank, world_size=2)
    model = tiny_model(BertForSequenceClassification)
    alone = copy.deepcopy(model)
    inputs = tiny_inputs(model, seed=rank)
    submodels = Submodels(model)
    parallel = torch.nn.parallel.DistributedDataParallel(model, find_unused_parameters=True)
    loss_of(submodels, inputs, True, parallel).backward()
    loss_of(Submodels(alone), inputs, True).backward()
    worst = 0.0
    for parameter, own in zip(model.parameters(), alone.parameters()):
        torch.distributed.all_reduce(own.grad)
        worst = max(worst, float((parameter.grad - own.grad / 2).abs().max()))
    found.put(worst)
