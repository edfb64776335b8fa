"""Importance profiles in a store: `importance-NAME.safetensors`, one for each task or method.

Arrays are kept with their slices in the checkpoint's order, so that a profile stays right when the store is reordered.
The metadata names the profile's method and the store that it belongs to, and has the facts of how it was measured.
"""

from __future__ import annotations

import hashlib
import importlib
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from sti_hf import native
from sti_hf.errors import ProfileError
from sti_hf.planning.importance import ImportanceProfile
from sti_hf.shards.layout import FULL_PIECE
from sti_hf.shards.store import ShardStore
from sti_hf.shards.whole import write_whole

if TYPE_CHECKING:
    from typing import Self

FORMAT_VERSION = 1
METADATA = "sti_importance"
DEFAULT_ORDER = "default"
"""Name that stands for no profile: the default order, in a store that has profiles too."""

METHODS = {
    "effects": "sti_hf.planning.effects:EffectsImportance",
    "exhaustive": "sti_hf.planning.exhaustive:ExhaustiveImportance",
}
"""Classes of profiles by the method that measures them."""

_PREFIX, _SUFFIX = "importance-", ".safetensors"


class StoredProfile(Protocol):
    """What an importance profile needs to be kept in a store."""

    @property
    def method(self) -> str:
        """What measured it, one of `METHODS`."""
        ...

    def worth(self) -> np.ndarray:
        """What each shard is worth, float64 `[N, M]`: for pictures."""
        ...

    def order(self) -> np.ndarray:
        """int `[N, M]`: the slices of every layer, the most important first."""
        ...

    def arrays(self) -> dict[str, np.ndarray]:
        """What it is made of."""
        ...

    @classmethod
    def from_arrays(cls, arrays: dict[str, np.ndarray]) -> Self:
        """The profile with these `arrays()`."""
        ...

    def reordered(self, order: np.ndarray) -> Self:
        """With the slices in another order, int `[N, M]`: slice k of layer l is this one's slice `order[l, k]`."""
        ...


def profile_names(store: ShardStore) -> list[str]:
    """Names of the profiles in a store, sorted."""
    files = store.path.glob(f"{_PREFIX}*{_SUFFIX}")
    return sorted(file.name.removeprefix(_PREFIX).removesuffix(_SUFFIX) for file in files)


def write_profile(store: ShardStore, name: str, profile: StoredProfile, facts: Mapping[str, Any]) -> Path:
    """Puts a profile of this store into it, in place of one of that name, and returns the file.

    `facts` is JSON: task, data, metric and the like. Raises `ValueError` for a name that cannot be a file's.
    """
    path = profile_path(store, name)
    as_in_checkpoint = profile.reordered(np.argsort(store.stack.slice_order, axis=1))
    arrays = {key: np.ascontiguousarray(values) for key, values in as_in_checkpoint.arrays().items()}
    metadata = {
        "format_version": FORMAT_VERSION,
        "method": profile.method,
        "store": store_identity(store),
        "checksum": _checksum(arrays),
        "facts": dict(facts),
    }
    # One entry: safetensors writes several in any order, and equal profiles shall be equal files.
    write_whole(path, save(arrays, {METADATA: json.dumps(metadata, sort_keys=True, allow_nan=False)}))
    return path


def read_profile(store: ShardStore, name: str) -> tuple[ImportanceProfile, dict[str, Any]]:
    """A profile in a store, its slices as the store's, and the facts that it was written with.

    Raises `ValueError` with one sentence if there is none of that name, it is damaged, of a newer version, or was
    measured on another store.
    """
    return _read(store, name)


def best_first(store: ShardStore, name: str) -> np.ndarray:
    """int64 `[N, M]`: the store's slices in every layer, those first that a profile takes for the most important.

    Raises `ValueError` as `read_profile` does.
    """
    profile, _ = _read(store, name)
    order: np.ndarray = profile.order()
    return order


def submodel_accuracy(store: ShardStore, facts: Mapping[str, Any]) -> dict[tuple[int, int], float]:
    """What the facts of a profile say of n x m submodels, for the slices as the store has them now; {} where that was
    not measured."""
    for measured in facts.get("submodels", ()):
        if measured["slice_order"] == [list(order) for order in store.stack.slice_order]:
            return {(depth, width): value for depth, width, value in measured["accuracy"]}
    return {}


def examples_of(facts: Mapping[str, Any]) -> str:
    """What a profile was measured on, in words, by its facts."""
    if "windows" in facts:
        return f"{facts['windows']} windows of {facts['window_tokens']} tokens"
    return f"{facts.get('sentences')} sentences"


def profile_path(store: ShardStore, name: str) -> Path:
    """The file of the profile called `name`; raises `ValueError` for a name that cannot be one."""
    if not re.fullmatch(r"[A-Za-z0-9._-]+", name) or name == DEFAULT_ORDER:
        raise ProfileError(
            f"{name!r} cannot be an importance profile's name; use letters, digits, '.', '_' and '-', "
            f"and not {DEFAULT_ORDER!r}."
        )
    return store.path / f"{_PREFIX}{name}{_SUFFIX}"


def store_identity(store: ShardStore) -> str:
    """Names the quantized weights of a store, in whatever order its slices stand: checkpoint, quantizer, and checksums
    of all planes, which tell stores apart that were calibrated with other texts."""
    digest = hashlib.sha256(f"{store.index.fingerprint} {store.index.quantizer}".encode())
    for checksums, order in zip(store.stack.checksums, store.stack.slice_order):
        digest.update(checksums[:FULL_PIECE, np.argsort(order)].astype("<u4").tobytes())
    return digest.hexdigest()


def _read(store: ShardStore, name: str) -> tuple[Any, dict[str, Any]]:
    path = profile_path(store, name)
    if not path.is_file():
        names = profile_names(store)
        there_are = f"it has {', '.join(names)}" if names else "it has none; make one with `sti profile-importance`"
        raise ProfileError(f"The store {store.path} has no importance profile {name!r}; {there_are}.")
    try:
        with safe_open(path, "numpy") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA, "{}"))
            arrays = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 - it is no dictionary
    except (SafetensorError, OSError, ValueError) as error:
        raise ProfileError(f"The importance profile {path} is damaged ({error}); profile again.") from error
    if metadata.get("format_version") != FORMAT_VERSION or metadata.get("method") not in METHODS:
        raise ProfileError(
            f"The importance profile {path} is of another version of sti_hf; upgrade, or profile again."
        )
    if metadata.get("store") != store_identity(store):
        raise ProfileError(f"The importance profile {path} was measured on another store; profile this one.")
    if metadata.get("checksum") != _checksum(arrays):
        raise ProfileError(f"The importance profile {path} is damaged (its checksum does not match); profile again.")
    module, _, class_name = METHODS[metadata["method"]].partition(":")
    profile_class = getattr(importlib.import_module(module), class_name)
    profile = profile_class.from_arrays(arrays).reordered(np.array(store.stack.slice_order))
    return profile, metadata["facts"]


def _checksum(arrays: Mapping[str, np.ndarray]) -> int:
    checksum = 0
    for name, values in sorted(arrays.items()):
        raw = np.frombuffer(f"{name} {values.dtype} {values.shape}".encode() + values.tobytes(), np.uint8)
        checksum = native.crc32c(raw, checksum)
    return checksum
