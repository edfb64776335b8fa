"""Which stacks a model has, and where."""

from __future__ import annotations

import pytest
import torch
from transformers import BertForSequenceClassification, CLIPForImageClassification, CLIPModel, SiglipModel

from sti_hf.model.stacks import stack_configs, stack_models, stack_prefix
from tests.models import tiny_config, tiny_model


def test_most_models_have_one() -> None:
    model = tiny_model(BertForSequenceClassification)
    assert stack_models(model) == {"": model}
    assert stack_configs(model.config) == {"": model.config}
    assert stack_prefix(model, "") == ""


@pytest.mark.parametrize("model_class", [CLIPModel, SiglipModel])
def test_two_towers_are_models_of_their_own(model_class) -> None:
    model = tiny_model(model_class)
    parts = stack_models(model)
    assert {path: part.config.model_type for path, part in parts.items()} == {
        path: config.model_type for path, config in stack_configs(model.config).items()
    }
    weights = model.state_dict()
    for path, part in parts.items():
        prefix = stack_prefix(model, path)
        assert all(torch.equal(weights[prefix + name], weight) for name, weight in part.state_dict().items())


def test_a_class_may_have_some_of_them() -> None:
    model = CLIPForImageClassification(tiny_config("clip"))
    assert list(stack_models(model)) == ["vision_model"]
