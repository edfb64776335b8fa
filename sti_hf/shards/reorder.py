"""Another order of the slices of a store: the same shards, in other places."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from safetensors.torch import save

from sti_hf import native
from sti_hf.errors import ConfigurationError
from sti_hf.model import Architecture
from sti_hf.shards.index import INDEX_FILE
from sti_hf.shards.layout import KINDS
from sti_hf.shards.partition import permute_biases
from sti_hf.shards.reading import read_piece
from sti_hf.shards.resident import read_resident
from sti_hf.shards.safetensors_file import SafetensorsWriter
from sti_hf.shards.sharding import ONE_SHARDS_FILE
from sti_hf.shards.store import RESIDENT_FILE, ShardStore
from sti_hf.shards.whole import whole_or_unchanged


def reorder_store(
    store: ShardStore,
    architecture: Architecture,
    order: Sequence[Sequence[int]],
    progress: Callable[[int], object] = lambda layers: None,
) -> ShardStore:
    """Rewrites a store with its slices in another order, whole or not at all; everything else stays.

    Slice k of layer l is then the one that was stored as slice `order[l][k]`. At full grid the model computes what it
    did before. `progress` is called with the number of layers done. Raises `ValueError` where `order` is not a
    permutation of every layer's slices, or these have no other order, `StoreError` where the store is damaged.
    """
    if not store.grid.droppable:
        raise ConfigurationError(
            f"The slices of the store {store.path} have one order only: its layers cannot do without some of their "
            "heads, and are read whole."
        )
    every = list(range(store.grid.slices))
    if len(order) != store.grid.layers or any(sorted(slices) != every for slices in order):
        raise ConfigurationError(
            f"order must have the slices 0 to {every[-1]} once for each of the {store.grid.layers} layers."
        )
    rewritten = {INDEX_FILE, RESIDENT_FILE, *store.stack.layer_files}
    with whole_or_unchanged(store.path) as folder:
        shutil.copytree(store.path, folder, ignore=lambda at, names: rewritten & set(names), dirs_exist_ok=True)
        resident = read_resident(store)
        permute_biases(resident, architecture, store.grid, order)
        (folder / RESIDENT_FILE).write_bytes(save(resident, metadata={"format": "pt"}))
        offsets = []
        with SafetensorsWriter(folder / ONE_SHARDS_FILE, store.grid.layers) as writer:
            for layer in range(store.grid.layers):
                offsets.append(writer.position)
                for kind in range(KINDS):
                    for k in order[layer]:
                        writer.append(read_piece(store, layer, kind, k))
                writer.pad()
                writer.finish_tensor(f"layers.{layer}", "U8", (writer.position - offsets[-1],))
                progress(layer + 1)
        unchanged = {name: size for name, size in store.index.files.items() if name not in rewritten}
        stack = replace(
            store.stack,
            slice_order=_permuted(store.stack.slice_order, order),
            header_bytes=_permuted(store.stack.header_bytes, order),
            checksums=np.stack([checksums[:, slices] for checksums, slices in zip(store.stack.checksums, order)]),
            layer_files=(ONE_SHARDS_FILE,) * store.grid.layers,
            layer_offsets=tuple(offsets),
        )
        index = replace(
            store.index,
            stacks={name: stack for name in store.index.stacks},
            files=unchanged | {name: (folder / name).stat().st_size for name in (RESIDENT_FILE, ONE_SHARDS_FILE)},
            resident_checksum=native.crc32c((folder / RESIDENT_FILE).read_bytes()),
        )
        (folder / INDEX_FILE).write_text(index.to_json())
    return ShardStore.open(store.path)


def _permuted(rows: Sequence[Sequence[int]], order: Sequence[Sequence[int]]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(row[k] for k in slices) for row, slices in zip(rows, order))
