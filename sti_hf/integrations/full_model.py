"""A store back as the stock model that it was made from: for profiling and evaluation."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from sti_hf.integrations.assigning import assign_weights, lacks, mismatches
from sti_hf.integrations.building import empty_model
from sti_hf.integrations.model_classes import stock_class
from sti_hf.integrations.structure import check_structure
from sti_hf.model import get_architecture
from sti_hf.model.architecture import base_prefix
from sti_hf.model.fused import join_fused, split_fused
from sti_hf.shards.partition import inverse_order, join_layer, permute_biases
from sti_hf.shards.reading import read_full_layer, read_table
from sti_hf.shards.resident import read_resident
from sti_hf.shards.store import ShardStore


def full_model(store: ShardStore) -> PreTrainedModel:
    """The stock model in float32 and eval mode, with the checkpoint's own weights: no checkpoint is needed.

    Raises `StoreError` where the store was written without full weights, is damaged, or has no weights for the head
    of its class.
    """
    config = AutoConfig.from_pretrained(store.path)
    for name in ("quantization_config", "transformers_weights"):
        if hasattr(config, name):
            delattr(config, name)
    model = empty_model(stock_class(config), config, torch.float32)
    check_structure(type(model), config, store)
    architecture = get_architecture(config)
    split_fused(model, architecture)
    assigned = assign_weights(model, _all_weights(store, model))
    if assigned.missing:
        raise lacks(store, model, assigned.missing)
    if assigned.mismatched:
        raise mismatches(store, model, assigned.mismatched)
    join_fused(model, architecture)
    return model.requires_grad_(True).eval()


def _all_weights(store: ShardStore, model: PreTrainedModel) -> dict[str, Tensor]:
    """All of a store's weights under their names in the model, in float32 (but for integers)."""
    architecture = get_architecture(model.config)
    prefix = base_prefix(model)
    orders = [inverse_order(order) for order in store.stack.slice_order]
    weights = read_resident(store)
    permute_biases(weights, architecture, store.grid, orders)
    for layer, order in enumerate(orders):
        matrices = join_layer(read_full_layer(store, layer), architecture.matrices, store.grid, order)
        for matrix in architecture.matrices:
            weights[f"{prefix}{architecture.layers}.{layer}.{matrix.module}.weight"] = matrices[matrix.name]
    embeddings = architecture.embeddings(model.config)
    for name, table in store.stack.tables.items():
        paths = [f"{prefix}{embeddings[name]}"] if name in embeddings else []
        weights |= dict.fromkeys((f"{path}.weight" for path in (*paths, *table.decoders)), read_table(store, name))
    return weights
