"""Whether a configuration is of the model that a store holds."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from sti_hf.errors import ConfigurationError
from sti_hf.model import get_architecture
from sti_hf.model.architecture import POSITION_EMBEDDINGS, WORD_EMBEDDINGS
from sti_hf.shards.store import ShardStore


def check_structure(model_class: type[PreTrainedModel], config: PreTrainedConfig, store: ShardStore) -> None:
    """Raises `ConfigurationError` where `model_class` or a field of `config` asks for what the store does not have.

    Only fields that decide about layers and embeddings are looked at: the shapes of all other weights are when they
    are loaded.
    """
    # A configuration that is read from a file has the file's model_type, whatever its class is.
    of_class = getattr(model_class.config_class, "model_type", config.model_type)
    for model_type in (config.model_type, of_class):
        if model_type != store.index.model_type:
            raise ConfigurationError(
                f"{model_class.__name__} with this configuration is of the type {model_type!r}, and the model in the "
                f"store {store.path} of {store.index.model_type!r}: use a class and a configuration of that type."
            )
    architecture = get_architecture(config)
    sizes = _sizes(store)
    asked_sizes = {field: getattr(config, field, stored) for field, stored in sizes.items()}
    sizes[architecture.ffn_size] = store.grid.matrix_rows["up"] * store.grid.slices
    asked_sizes[architecture.ffn_size] = architecture.ffn_neurons(config)
    for field, stored in sizes.items():
        asked = asked_sizes[field]
        if asked != stored:
            raise ConfigurationError(
                f"{field} of the store {store.path} is {stored}, and {asked} is asked for: leave it as it is, or "
                "shard a checkpoint that has it so."
            )


def _sizes(store: ShardStore) -> dict[str, Any]:
    """What the fields of a configuration must be."""
    grid, tables, rows = store.grid, store.index.tables, store.grid.matrix_rows
    sizes = {
        "num_hidden_layers": grid.layers,
        "num_key_value_heads": grid.slices,
        "num_attention_heads": grid.slices * rows["q"] // rows["k"],
        "hidden_size": grid.row_length,
    }
    words, positions = tables.get(WORD_EMBEDDINGS), tables.get(POSITION_EMBEDDINGS)
    if words is not None:
        sizes |= {"vocab_size": words.rows, "embedding_size": words.columns}
    if positions is not None:
        sizes["max_position_embeddings"] = positions.rows
    return sizes
