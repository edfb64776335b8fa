"""Reads a whole store and finds what of it is damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from sti_hf import native
from sti_hf.model.vocabulary import VOCABULARY
from sti_hf.shards.index import Table
from sti_hf.shards.layout import piece_name
from sti_hf.shards.store import RESIDENT_FILE, TABLES_FILE, ShardStore


@dataclass(frozen=True)
class Damage:
    """A piece of a store that is not what its checksum says."""

    file: str
    offset: int
    what: str


def verify_store(store: ShardStore, progress: Callable[[int], None] = lambda read: None) -> list[Damage]:
    """What of a store is damaged. `progress` is called with the bytes read so far."""
    damage: list[Damage] = []
    read = 0
    for size, found in _checks(store):
        read += size
        damage += found
        progress(read)
    return damage


def _checks(store: ShardStore) -> Iterator[tuple[int, list[Damage]]]:
    resident = (store.path / RESIDENT_FILE).read_bytes()
    intact = native.crc32c(resident) == store.index.resident_checksum
    yield len(resident), [] if intact else [Damage(RESIDENT_FILE, 0, "resident weights")]
    for part in store.parts:
        for name, table in part.stack.tables.items():
            yield table.rows * table.row_bytes, _damaged_rows(part, name, table)
        for layer, layout in enumerate(part.layouts):
            region = np.memmap(part.layer_path(layer), np.uint8, "r", layout.offset, (layout.region_bytes,))
            yield layout.region_bytes, _damaged_pieces(part, layer, region)


def _damaged_rows(store: ShardStore, name: str, table: Table) -> list[Damage]:
    shape = (table.rows, table.row_bytes)
    rows = np.memmap(store.path / TABLES_FILE, np.uint8, "r", table.offset, shape)
    bad = [row for row, expected in enumerate(store.row_checksums(name)) if native.crc32c(rows[row]) != expected]
    return [Damage(TABLES_FILE, table.offset + row * table.row_bytes, f"row {row} of {name}") for row in bad]


def _damaged_pieces(store: ShardStore, layer: int, region: np.ndarray) -> list[Damage]:
    layout = store.layouts[layer]
    damage = []
    for (kind, index), offset in np.ndenumerate(layout.piece_offset):
        start = offset - layout.offset
        piece = region[start : start + layout.piece_bytes[kind, index]]
        if native.crc32c(piece) != store.stack.checksums[layer, kind, index]:
            owner = VOCABULARY if store.is_vocabulary else store.stack_name
            shard = f"shard ({layer}, {index})" + (f" of {owner}" if owner else "")
            damage.append(Damage(store.stack.layer_files[layer], int(offset), f"{piece_name(kind)} of {shard}"))
    return damage
