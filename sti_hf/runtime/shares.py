"""What each part of a model has of T and of the budgets, where several run one after the other."""

from __future__ import annotations

from collections.abc import Mapping

from sti_hf.config import STIConfig

BUDGETS = ("preload_budget", "staging_budget", "memory_budget")


def shared_out(config: STIConfig, weights: Mapping[str, int]) -> dict[str, STIConfig]:
    """The share that each part has of T and of the budgets: in proportion to its `weights`."""
    whole = sum(weights.values())
    return {name: _share(config, count / whole) for name, count in weights.items()}


def _share(config: STIConfig, share: float) -> STIConfig:
    if share == 1:
        return config
    bytes_of = {name: getattr(config, name) for name in BUDGETS}
    parts = {name: int(share * size) for name, size in bytes_of.items() if size is not None}
    return config.replaced(target_latency=share * config.target_latency, **parts)
