"""The importance profiles of a store, as the page shows them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from sti_hf.planning.importance_file import StoredProfile, profile_names, read_profile, submodel_accuracy
from sti_hf.shards.store import ShardStore


@dataclass(frozen=True, eq=False)
class Importance:
    """A profile: what each shard is worth `[N, M]`, slices as the store has them; how it was measured; and the metric
    of n x m submodels, {} where that is unknown."""

    name: str
    method: str
    worth: np.ndarray
    facts: dict[str, Any]
    submodels: dict[tuple[int, int], float]


def read_importance(store: ShardStore) -> list[Importance]:
    """All profiles of a store, by name. Raises `ValueError` where one cannot be read."""
    found = []
    for name in profile_names(store):
        profile, facts = read_profile(store, name)
        stored = cast(StoredProfile, profile)
        found.append(Importance(name, stored.method, stored.worth(), facts, submodel_accuracy(store, facts)))
    return found
