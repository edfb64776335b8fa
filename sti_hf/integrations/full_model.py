"""A store back as the stock model that it was made from: for profiling and evaluation."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, PreTrainedModel

from sti_hf.architectures import get_architecture
from sti_hf.architectures.base import base_prefix
from sti_hf.errors import StoreError
from sti_hf.integrations.model_classes import stock_class
from sti_hf.shards.partition import inverse_order, join_layer, permute_biases
from sti_hf.shards.reading import read_full_layer, read_table
from sti_hf.shards.resident import read_resident
from sti_hf.shards.store import ShardStore


def full_model(store: ShardStore) -> PreTrainedModel:
    """The stock model in float32 and eval mode, with the checkpoint's own weights: no checkpoint is needed.

    Raises `StoreError` where the store was written without full weights, is damaged, or has no weights for the head
    because its checkpoint had none.
    """
    config = AutoConfig.from_pretrained(store.path)
    for name in ("quantization_config", "transformers_weights"):
        if hasattr(config, name):
            delattr(config, name)
    architecture = get_architecture(config)
    model_class: Any = stock_class(config)
    model: PreTrainedModel = model_class._from_config(config, dtype=torch.float32)
    prefix = base_prefix(model)
    orders = [inverse_order(order) for order in store.index.slice_order]
    state = read_resident(store)
    permute_biases(state, architecture, store.grid, orders)
    for layer, order in enumerate(orders):
        weights = join_layer(read_full_layer(store, layer), architecture.matrices, store.grid, order)
        for matrix in architecture.matrices:
            state[f"{prefix}{architecture.layers}.{layer}.{matrix.module}.weight"] = weights[matrix.name]
    embeddings = architecture.embeddings(config)
    for name, table in store.index.tables.items():
        paths = [f"{prefix}{embeddings[name]}"] if name in embeddings else []
        state |= dict.fromkeys((f"{path}.weight" for path in (*paths, *table.decoders)), read_table(store, name))
    loaded = model.load_state_dict({name: tensor.float() for name, tensor in state.items()}, strict=False)
    present = {tensor.data_ptr() for name, tensor in model.state_dict(keep_vars=True).items() if name in state}
    parameters = dict(model.named_parameters(remove_duplicate=False))
    absent = [
        name for name in loaded.missing_keys if name in parameters and parameters[name].data_ptr() not in present
    ]
    if absent:
        raise StoreError(
            f"The store {store.path} has no weights for {absent[0]}, because its checkpoint had none: fine-tune the "
            "model for the task first, then shard it."
        )
    return model.eval()
