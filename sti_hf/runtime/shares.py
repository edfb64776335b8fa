"""What each part of a model has of T and of the budgets, where several run one after the other."""

from __future__ import annotations

from collections.abc import Mapping

from sti_hf.config import STIConfig
from sti_hf.model.vocabulary import VOCABULARY
from sti_hf.planning.importance_file import DEFAULT_ORDER
from sti_hf.shards.store import ShardStore

LAYERS = "layers"

OF_VOCABULARY = {"importance": DEFAULT_ORDER, "submodels": "none", "fixed_plan": True, "refine": False}
"""What is asked for of the vocabulary, whatever is of the layers: every word is needed, and the first ones, which most
tokenizers number by frequency, have the most bits."""

BUDGETS = ("preload_budget", "staging_budget", "memory_budget")


def shared_out(config: STIConfig, weights: Mapping[str, int]) -> dict[str, STIConfig]:
    """The share that each part has of T and of the budgets: in proportion to its `weights`."""
    whole = sum(weights.values())
    return {name: _share(config, count / whole) for name, count in weights.items()}


def part_shares(config: STIConfig, store: ShardStore, strips: ShardStore | None) -> dict[str, STIConfig]:
    """The shares of a store's layers, and of the strips of its vocabulary where these run."""
    weights = {LAYERS: store.grid.weights}
    if strips is None:
        return shared_out(config, weights)
    shares = shared_out(config, {**weights, VOCABULARY: strips.grid.weights})
    return {**shares, VOCABULARY: shares[VOCABULARY].replaced(**OF_VOCABULARY)}


def _share(config: STIConfig, share: float) -> STIConfig:
    if share == 1:
        return config
    bytes_of = {name: getattr(config, name) for name in BUDGETS}
    parts = {name: int(share * size) for name, size in bytes_of.items() if size is not None}
    of_token = config.target_token_latency
    return config.replaced(
        target_latency=share * config.target_latency,
        target_token_latency=None if of_token is None else share * of_token,
        **parts,
    )
