"""Builds a store's model: a stock model without weights, the modules that run it from the store, the resident weights.

Nothing is changed for the rest of the process meanwhile, not even for a moment: other threads may build and load what
they like. (Transformers' own loader sets torch's default dtype for everybody; accelerate's `init_empty_weights` and
Transformers' `no_init_weights` replace functions of torch.)
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from sti_hf.errors import UnsupportedModelError
from sti_hf.integrations.assigning import assign_weights, lacks, mismatches
from sti_hf.integrations.empty_parameters import EmptyParameters
from sti_hf.integrations.load_arguments import dtype_of
from sti_hf.runtime.session import STISession
from sti_hf.runtime.stacked_session import StackedSession
from sti_hf.shards.store import ShardStore

NO_ARGUMENTS: Mapping[str, Any] = {}


def empty_model(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    dtype: torch.dtype,
    arguments: Sequence[Any] = (),
    named_arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> PreTrainedModel:
    """A stock model of this dtype whose parameters have no memory yet, and whose buffers are as it makes them.

    Raises `UnsupportedModelError` where a buffer has no values either.
    """
    config.dtype = dtype
    with EmptyParameters(dtype):
        model: PreTrainedModel = model_class(config, *arguments, **named_arguments)
    empty = next((name for name, buffer in model.named_buffers() if buffer.is_meta), None)
    if empty is not None:
        raise UnsupportedModelError(
            f"{model_class.__name__} makes its buffer {empty} without values, so that a store cannot give it any; use "
            "a class that computes its buffers."
        )
    return model


def build_model(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    session: STISession | StackedSession,
    resident: Callable[[], Mapping[str, Tensor]],
    arguments: Sequence[Any] = (),
    named_arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> tuple[PreTrainedModel, set[str]]:
    """The model, in eval mode, that runs from `session`, and the names of resident weights that it has no place for.

    `resident` gives the resident weights, once the model is there to take them. `config` becomes the model's own, in
    the dtype that it names or else the store's.
    It must fit the store (`check_structure`). Raises `StoreError` where the store lacks weights for `model_class` or
    has them in other shapes, and what the class itself raises for its arguments.
    """
    store = session.store
    dtype = dtype_of(config.dtype) or _stored_dtype(store)
    if hasattr(config, "transformers_weights"):  # the name of the store's resident weights: no checkpoint's
        del config.transformers_weights
    model = empty_model(model_class, config, dtype, arguments, named_arguments)
    session.attach(model)
    assigned = assign_weights(model, resident())
    if assigned.missing:
        raise lacks(store, model, assigned.missing)
    if assigned.mismatched:
        raise mismatches(store, model, assigned.mismatched)
    model.config.quantization_config = session.config
    return model.eval(), assigned.unexpected


def _stored_dtype(store: ShardStore) -> torch.dtype:
    """The dtype of what a store keeps as the checkpoint had it; float32 where that is nothing."""
    table = next((table for stack in store.index.stacks.values() for table in stack.tables.values()), None)
    dtype: torch.dtype = getattr(torch, table.dtype if table is not None else store.index.full_dtype or "float32")
    return dtype
