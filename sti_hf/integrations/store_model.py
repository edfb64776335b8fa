"""The model of a store, without weights of its own."""

from __future__ import annotations

import functools
import inspect

from transformers import AutoConfig, PreTrainedModel

from sti_hf.integrations.building import build_model
from sti_hf.integrations.model_classes import bare_class, stock_class
from sti_hf.integrations.structure import check_structure, stored_config
from sti_hf.runtime.session import STISession
from sti_hf.shards.resident import read_resident, read_stack_resident
from sti_hf.shards.store import ShardStore


def load_model_on(store: ShardStore, session: STISession) -> PreTrainedModel:
    """The store's model, as the class it was sharded from, running from `session`."""
    config = AutoConfig.from_pretrained(store.path)
    model_class = stock_class(config)
    check_structure(model_class, config, store)
    model, _ = build_model(model_class, config, session, functools.partial(read_resident, store))
    return model


def load_encoder_on(store: ShardStore, session: STISession) -> PreTrainedModel:
    """The store's layers and embeddings alone, as Transformers' own class for them, whatever class it was sharded for;
    running from `session`. A pooler is left out where the class allows that."""
    config = stored_config(store)
    model_class = bare_class(config)
    takes_pooler = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    options = {"add_pooling_layer": False} if takes_pooler else {}
    check_structure(model_class, config, store)
    model, _ = build_model(model_class, config, session, functools.partial(read_stack_resident, store), (), options)
    return model
