"""Puts the modules that run a model from its store into a stock model, and takes them out."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from sti_hf.errors import StoreError
from sti_hf.model import get_architecture
from sti_hf.model.architecture import POSITION_EMBEDDINGS, WORD_EMBEDDINGS
from sti_hf.model.fused import join_fused, split_fused
from sti_hf.runtime.forwards import Forwards
from sti_hf.runtime.modules.elastic_linear import ElasticLinear
from sti_hf.runtime.modules.guarded import guard, guard_layers, release
from sti_hf.runtime.modules.row_gathered_embedding import RowGatheredEmbedding
from sti_hf.runtime.modules.stored_model import drop_methods, take_methods
from sti_hf.runtime.modules.streamed_decoder import StreamedDecoder
from sti_hf.shards.store import ShardStore

INDICES = {WORD_EMBEDDINGS: "Token ids", POSITION_EMBEDDINGS: "Positions (one for each token of a text)"}
"""What indexes a table, in messages; of others their name."""


def attach(model: PreTrainedModel, store: ShardStore, forwards: Forwards) -> None:
    """Makes a stock model of the store's architecture run from it. Its weights may still be missing.

    The model is left as it was where that fails. Raises `StoreError` where the store lacks a table for its head.
    """
    try:
        _put_in(model, store, forwards)
    except BaseException:
        detach(model)
        raise


def detach(model: PreTrainedModel) -> None:
    """Gives a model the stock modules back, without the weights that the store has (those are on the device meta)."""
    for name, module in list(model.named_modules()):
        if isinstance(module, ElasticLinear | RowGatheredEmbedding | StreamedDecoder):
            _replace(model, name, module.stock())
        release(module)
    join_fused(model, get_architecture(model.config))
    drop_methods(model)


def _put_in(model: PreTrainedModel, store: ShardStore, forwards: Forwards) -> None:
    architecture = forwards.engine.architecture
    base: Any = model.base_model
    # Transformers puts its capture hooks (output_hidden_states) on the layers there are at the first capture.
    maybe_install_capturing_hooks(base)
    path, _, layers_name = architecture.layers.rpartition(".")
    stack = base.get_submodule(path)
    layers = getattr(stack, layers_name)
    split_fused(model, architecture)
    for index, layer in enumerate(layers):
        for matrix in architecture.matrices:
            linear = layer.get_submodule(matrix.module)
            elastic = ElasticLinear(linear, index, matrix.name, matrix.by_columns, forwards)
            _replace(layer, matrix.module, elastic)
    guard_layers(layers, forwards)
    for name, path in architecture.embeddings(model.config).items():
        if name in store.stack.tables:
            indices = INDICES.get(name, f"Indices of {name}")
            _replace(base, path, RowGatheredEmbedding(base.get_submodule(path), name, indices, forwards))
    names = {name for name, _ in model.named_modules()}
    for path in names.intersection(architecture.lm_decoders):
        decoder: Any = model.get_submodule(path)
        _replace(model, path, StreamedDecoder(decoder, _table_of(store, path, model), forwards))
    model.requires_grad_(False)
    guard(base, forwards, Forwards.run_base, layers_name if stack is base else None)
    if stack is not base:
        guard(stack, forwards, Forwards.run_stack, layers_name)
    if base is not model:
        guard(model, forwards, Forwards.run_model)
    take_methods(model)


def _table_of(store: ShardStore, decoder: str, model: PreTrainedModel) -> str:
    for name, table in store.stack.tables.items():
        if decoder in table.decoders:
            return name
    if model.config.tie_word_embeddings:
        return WORD_EMBEDDINGS
    raise StoreError(
        f"The store {store.path} has no weights for {decoder}, which {type(model).__name__} needs: shard a checkpoint "
        "that has them, as that class."
    )


def _replace(root: nn.Module, path: str, module: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(root.get_submodule(parent), name, module)
