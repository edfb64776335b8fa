"""A store back as the stock model that it was made from: for profiling and evaluation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from sti_hf.architectures import Architecture, get_architecture
from sti_hf.integrations.checkpoint import stock_class
from sti_hf.shards.partition import inverse_order, join_layer, permute_bias
from sti_hf.shards.reading import read_full_layer, read_resident, read_table
from sti_hf.shards.store import WORD_EMBEDDINGS, ShardStore, StoreError


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
    prefix = "" if model.base_model is model else f"{model.base_model_prefix}."
    state = _resident(store, architecture, f"{prefix}{architecture.layers}")
    for layer in range(store.grid.layers):
        order = inverse_order(store.index.slice_order[layer])
        weights = join_layer(read_full_layer(store, layer), architecture.matrices, store.grid, order)
        for matrix in architecture.matrices:
            state[f"{prefix}{architecture.layers}.{layer}.{matrix.module}.weight"] = weights[matrix.name]
    for name, table in store.index.tables.items():
        paths = [f"{prefix}{architecture.word_embeddings}"] if name == WORD_EMBEDDINGS else []
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


def _resident(store: ShardStore, architecture: Architecture, layers: str) -> dict[str, Tensor]:
    """The resident weights, biases in the checkpoint's order."""
    resident = read_resident(store)
    for layer in range(store.grid.layers):
        order = inverse_order(store.index.slice_order[layer])
        for matrix in architecture.matrices:
            key = f"{layers}.{layer}.{matrix.module}.bias"
            if key in resident:
                resident[key] = permute_bias(resident[key], store.grid, matrix.name, order)
    return resident
