"""Copies and pickles of a model: its store and its configurations, from which it is opened again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from sti_hf.config import STIConfig
from sti_hf.errors import StoreReplacedError, UnsupportedUseError
from sti_hf.runtime.session import Reopening
from sti_hf.shards.resident import read_stack_resident
from sti_hf.shards.store import ShardStore


def reopening(model: Any) -> Reopening:
    """How to open a model again that `from_pretrained` made: a function, and its arguments.

    Raises `UnsupportedUseError` where its resident weights are no longer those of its store: a copy would not have
    them.
    """
    session = model.sti
    _check_unchanged(model, session.store)
    path, fingerprint = str(session.store.path), session.store.index.fingerprint
    return reopen, (path, fingerprint, model.__class__, model.config, session.config, model.dtype)


def reopen(
    path: str,
    fingerprint: str,
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    sti_config: STIConfig,
    dtype: torch.dtype,
) -> PreTrainedModel:
    """The model that was copied or pickled. Raises `StoreReplacedError` where another store is now in its place."""
    store = ShardStore.open(path)
    if store.index.fingerprint != fingerprint:
        raise StoreReplacedError(f"The store {path} is no longer that of the model that was copied: load again.")
    model: PreTrainedModel = model_class.from_pretrained(path, config=config, sti_config=sti_config, dtype=dtype)
    return model


def _check_unchanged(model: PreTrainedModel, store: ShardStore) -> None:
    present: dict[str, Tensor] = dict(model.named_parameters())
    prefix = f"{model.base_model_prefix}."
    for name, stored in read_stack_resident(store).items():
        found = present.get(name, present.get(name.removeprefix(prefix), present.get(prefix + name)))
        if found is not None and not torch.equal(found, stored.to(found.dtype)):
            raise UnsupportedUseError(
                f"{name} of this model was changed after it was loaded, and a copy is opened from the store, which "
                "has the old one: shard the changed checkpoint instead."
            )
