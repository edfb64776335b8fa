"""A stock model with a plan's weights computes what the runtime computes for the plan."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import BertForSequenceClassification, MPNetForSequenceClassification, RobertaModel

from sti_hf.profiling.plan_weights import PlanWeights
from tests.models import tiny_model
from tests.runtime.sessions import logits_of, plan_of, random_bits, running, store_of


@pytest.mark.parametrize("model_class", [BertForSequenceClassification, MPNetForSequenceClassification, RobertaModel])
def test_same_outputs_as_the_runtime(tmp_path, model_class):
    model = tiny_model(model_class)
    slices, layers = model.config.num_attention_heads, model.config.num_hidden_layers
    order = [torch.randperm(slices).tolist() for _ in range(layers)]
    store = store_of(model, tmp_path / "store", slice_order=order)
    ids = torch.randint(5, 50, (2, 9))
    twin = copy.deepcopy(model)
    weights = PlanWeights(twin, store)
    for seed, width in ((0, slices), (1, slices), (2, slices - 1)):
        bits = random_bits(store, seed, slices=width)
        weights.set(bits)
        streamed = running(store, plan_of(store, bits))
        with torch.no_grad():
            torch.testing.assert_close(logits_of(twin(ids)), logits_of(streamed(ids)), rtol=1e-5, atol=1e-5)
        streamed.sti.close()


def test_full_fidelity_gives_the_checkpoint_back(tmp_path):
    model = tiny_model(BertForSequenceClassification)
    store = store_of(model, tmp_path / "store")
    twin = copy.deepcopy(model)
    weights = PlanWeights(twin, store)
    weights.set(random_bits(store, 0))
    weights.set(random_bits(store, 0) * 0 + 32)
    for name, tensor in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], tensor), name
