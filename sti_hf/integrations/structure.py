"""Whether a configuration is of the model that a store holds."""

from __future__ import annotations

from typing import Any

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from sti_hf.errors import ConfigurationError
from sti_hf.model import get_architecture
from sti_hf.model.architecture import POSITION_EMBEDDINGS, WORD_EMBEDDINGS
from sti_hf.model.stacks import STACKED, stack_configs
from sti_hf.shards.store import ShardStore


def check_structure(model_class: type[PreTrainedModel], config: PreTrainedConfig, store: ShardStore) -> None:
    """Raises `ConfigurationError` where `model_class` or a field of `config` asks for what the store does not have.
    The store is whole, or that of the stack that `config` is of (`store_for`).

    Only fields that decide about layers and embeddings are looked at: the shapes of all other weights are when they
    are loaded.
    """
    of_whole = config.model_type in STACKED
    stored = store.index.model_type if of_whole else store.stack.model_type
    # A configuration that is read from a file has the file's model_type, whatever its class is.
    of_class = getattr(model_class.config_class, "model_type", config.model_type)
    for model_type in (config.model_type, of_class):
        if model_type != stored:
            raise ConfigurationError(
                f"{model_class.__name__} with this configuration is of the type {model_type!r}, and the model in the "
                f"store {store.path} of {stored!r}: use a class and a configuration of that type."
            )
    configs = stack_configs(config) if of_whole else dict.fromkeys(store.stacks, config)
    for path, stack in store.stacks.items():
        _check_stack(configs[path], stack)


def store_for(config: PreTrainedConfig, store: ShardStore) -> ShardStore:
    """The store with its stack of this configuration's type; as it is where none of its stacks is of that."""
    fits = (stack for stack in store.stacks.values() if stack.stack.model_type == config.model_type)
    return next(fits, store)


def _check_stack(config: PreTrainedConfig, store: ShardStore) -> None:
    architecture = get_architecture(config)
    sizes = _sizes(store)
    asked_sizes = {field: getattr(config, field, stored) for field, stored in sizes.items()}
    if not store.grid.droppable:
        sizes |= _heads(stored_config(store))
        asked_sizes |= _heads(config)
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
    grid, tables, rows = store.grid, store.stack.tables, store.grid.matrix_rows
    sizes = {"num_hidden_layers": grid.layers, "hidden_size": grid.row_length}
    if grid.droppable:
        sizes["num_key_value_heads"] = grid.slices
        sizes["num_attention_heads"] = grid.slices * rows["q"] // rows["k"]
    words, positions = tables.get(WORD_EMBEDDINGS), tables.get(POSITION_EMBEDDINGS)
    if words is not None:
        sizes |= {"vocab_size": words.rows, "embedding_size": words.columns}
    if positions is not None:
        sizes["max_position_embeddings"] = positions.rows
    return sizes


def _heads(config: PreTrainedConfig) -> dict[str, Any]:
    """What a configuration says of heads: slices that are not droppable do not tell."""
    heads = {name: getattr(config, name, None) for name in ("num_attention_heads", "num_key_value_heads")}
    return {**heads, "head_dim": get_architecture(config).head_size(config)}


def stored_config(store: ShardStore) -> PreTrainedConfig:
    """The configuration of a store's stack, from its config.json."""
    assert store.stack_name is not None
    return stack_configs(AutoConfig.from_pretrained(store.path))[store.stack_name]
