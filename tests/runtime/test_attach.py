"""Modules are put into a model, and taken out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from sti_hf.runtime import attach as attaching
from tests.models import FAMILIES, head_of, tiny_model
from tests.runtime.sessions import plan_of, running, store_of


@pytest.mark.parametrize("model_type", FAMILIES)
def test_a_model_that_is_detached_has_its_stock_modules(model_type: str, tmp_path: Path) -> None:
    stock = tiny_model(head_of(model_type))
    store = store_of(stock, tmp_path / "store", "gobo")
    model: Any = running(store, plan_of(store, np.full((store.grid.layers, store.grid.slices), 6)))
    assert str(model) != str(stock)
    model.sti.close()
    attaching.detach(model)
    assert str(model) == str(stock)
    paddings = [module.padding_idx for module in stock.modules() if isinstance(module, nn.Embedding)]
    assert [module.padding_idx for module in model.modules() if isinstance(module, nn.Embedding)] == paddings
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == {
        name: tensor.shape for name, tensor in stock.state_dict().items()
    }
    kept = {name: tensor for name, tensor in model.state_dict().items() if not tensor.is_meta}
    assert kept and all(torch.equal(tensor, stock.state_dict()[name]) for name, tensor in kept.items())
