"""Opens sessions: a store with the device profile that its plans are made from."""

from __future__ import annotations

from transformers import PreTrainedModel

from sti_hf.config import STIConfig
from sti_hf.integrations.device_profiles import device_profile, rate_limit
from sti_hf.integrations.store_planner import StorePlanner
from sti_hf.runtime.gemm import ComputePath
from sti_hf.runtime.session import STISession
from sti_hf.runtime.stacked_session import StackedSession
from sti_hf.shards.store import ShardStore


def open_session(store: ShardStore, config: STIConfig, model_class: type[PreTrainedModel] | None = None) -> STISession:
    """A session on `store`, of one stack, for a model of `model_class` (None: of the class that was sharded), reading
    already. Profiles the device first where that has not been done."""
    profile = device_profile(store, config.compute_dtype)
    path = ComputePath(profile.compute_dtype, profile.gemm)
    planner = StorePlanner(store, profile, model_class)
    return STISession(store, config, planner, path, rate_limit(), planner.vocabulary_for(config))


def open_stacked_session(store: ShardStore, config: STIConfig) -> StackedSession:
    """A session on a store of several stacks, reading already. Profiles the device first, where need be."""
    return StackedSession(store, config, open_session)
