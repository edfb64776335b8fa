"""What a whole model does otherwise than a stock one, because its weights are in a store."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any, NoReturn

from torch import nn

from sti_hf.errors import UnsupportedUseError
from sti_hf.runtime.modules.row_gathered_embedding import RowGatheredEmbedding
from sti_hf.runtime.modules.streamed_decoder import StreamedDecoder


def reduce_ex(model: Any, protocol: Any) -> Any:
    """A model is pickled as its store and its configurations, and reopens there."""
    return model.sti.reopening(model)


def deepcopy(model: Any, memo: dict[int, Any]) -> Any:
    """A model that is opened from the same store."""
    reopen, arguments = model.sti.reopening(model)
    return reopen(*arguments)


def num_parameters(model: Any, only_trainable: bool = False, exclude_embeddings: bool = False) -> int:
    """Parameters of the model, wherever they are: as many as the stock model has. None is trainable."""
    if only_trainable:
        return 0
    modules = list(model.modules())
    resident = {id(each): each.numel() for each in model.parameters()}
    embedded = {each.key: each.num_embeddings * each.embedding_dim for each in modules if _is_gathered(each)}
    tables = {each.key: each.out_features * each.in_features for each in modules if _is_streamed(each)}
    if exclude_embeddings:
        for embedding in modules:
            if isinstance(embedding, nn.Embedding):
                resident.pop(id(embedding.weight), None)
        tables = {name: count for name, count in tables.items() if name not in embedded}
    else:
        tables |= embedded
    stored: int = model.sti.stored_weights
    return sum(resident.values()) + sum(tables.values()) + stored


def get_memory_footprint(model: Any, return_buffers: bool = True) -> int:
    """Bytes of weights in memory now: what is resident, and the preload, staging and working buffers."""
    memory = model.sti.memory()
    return sum(memory[name] for name in ("resident", "preload", "staging", "working"))


def resize_token_embeddings(model: Any, new_num_tokens: int | None = None, *args: Any, **kwargs: Any) -> Any:
    """The embeddings, where this asks for their present size. Raises `UnsupportedUseError` for another."""
    embeddings = model.get_input_embeddings()
    if new_num_tokens not in (None, embeddings.num_embeddings):
        raise UnsupportedUseError(
            f"This model's {embeddings.num_embeddings} embeddings are in its store and cannot become "
            f"{new_num_tokens}: resize those of the checkpoint, and shard it again."
        )
    return embeddings


def tie_weights(model: Any, *args: Any, **kwargs: Any) -> None:
    """Nothing is to be done: a store has tied weights once."""


def load_state_dict(model: Any, *args: Any, **kwargs: Any) -> NoReturn:
    """Raises `UnsupportedUseError`: the model would be a mixture of these weights and its store's."""
    raise UnsupportedUseError(
        f"This model's weights are in its store, {model.sti.store.path}: to run others, shard a checkpoint that has "
        "them."
    )


def save_pretrained(model: Any, *args: Any, **kwargs: Any) -> NoReturn:
    """Raises `UnsupportedUseError`: the weights are in the store already."""
    raise UnsupportedUseError(
        f"This model's weights are in its store: to save the model, copy {model.sti.store.path}."
    )


def push_to_hub(model: Any, *args: Any, **kwargs: Any) -> NoReturn:
    """Raises `UnsupportedUseError`: the weights are in the store already."""
    raise UnsupportedUseError(
        f"This model's weights are in its store: to share the model, upload the folder {model.sti.store.path}."
    )


METHODS: dict[str, Callable[..., Any]] = {
    "__reduce_ex__": reduce_ex,
    "__deepcopy__": deepcopy,
    **{
        method.__name__: method
        for method in (
            num_parameters,
            get_memory_footprint,
            resize_token_embeddings,
            tie_weights,
            load_state_dict,
            save_pretrained,
            push_to_hub,
        )
    },
}
"""By their names in the model. Its attribute `sti` is its session."""


def take_methods(model: nn.Module) -> None:
    """Gives a model these methods; they refer to it weakly, so that it is freed when it is deleted."""
    model.__dict__.update({name: functools.partial(method, weakref.proxy(model)) for name, method in METHODS.items()})


def drop_methods(model: nn.Module) -> None:
    """Takes them away."""
    for name in METHODS:
        model.__dict__.pop(name, None)


def _is_gathered(module: nn.Module) -> bool:
    return isinstance(module, RowGatheredEmbedding)


def _is_streamed(module: nn.Module) -> bool:
    return isinstance(module, StreamedDecoder)
