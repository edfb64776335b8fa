from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    CLIPTextModelWithProjection,
    CLIPVisionModelWithProjection,
)

from sti_hf import STIConfig, shard_checkpoint
from sti_hf.integrations.store_model import load_encoder_on
from sti_hf.planning import OnePlan
from sti_hf.runtime.session import STISession
from tests.integrations.checkpoints import save_checkpoint
from tests.models import FAMILIES, head_of, tiny_inputs, tiny_model
from tests.runtime.sessions import EXACT, plan_of, store_of


class Own(BertForSequenceClassification):
    """A user's class with a head of its own."""

    def __init__(self, config: BertConfig) -> None:
        super().__init__(config)
        self.second_head = nn.Linear(config.hidden_size, 5)


def encoder_of(store: Any) -> Any:
    plan = plan_of(store, np.full((store.grid.layers, store.grid.slices), 32))
    return load_encoder_on(store, STISession(store, STIConfig(), OnePlan(plan), EXACT))


@pytest.mark.parametrize("head", [*map(head_of, FAMILIES), CLIPVisionModelWithProjection, CLIPTextModelWithProjection])
def test_the_encoder_of_every_family(head: Any, tmp_path: Path) -> None:
    stock = tiny_model(head)
    model = encoder_of(store_of(stock, tmp_path / "store"))
    inputs = tiny_inputs(stock)
    bare = stock if type(stock) is type(model) else stock.base_model
    with torch.no_grad():
        assert torch.allclose(model(**inputs)[0], bare(**inputs)[0], atol=1e-5)
    model.sti.close()


def test_the_encoder_of_a_class_that_only_its_user_knows(tmp_path: Path) -> None:
    stock = tiny_model(Own)
    save_checkpoint(stock, tmp_path / "model")
    model = encoder_of(shard_checkpoint(tmp_path / "model", tmp_path / "store", model_class=Own, quantizer="gobo"))
    assert type(model) is BertModel
    inputs = tiny_inputs(stock)
    with torch.no_grad():
        assert torch.allclose(model(**inputs)[0], stock.bert(**inputs)[0], atol=1e-5)
    model.sti.close()
