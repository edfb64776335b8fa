"""Where every piece of a plan is in memory, and the reads that bring it there.

The memory that a run of reads fills keeps the distances of the file, so a piece's place follows from its offset.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from sti_hf.planning import ExecutionPlan
from sti_hf.planning.staging import place_layers, reads_downwards
from sti_hf.runtime.buffers import LOCATION_SHIFT, PRELOAD, STAGING, location
from sti_hf.shards.layout import FULL, FULL_PIECE, HEADER_PIECE, PLANES, LayerLayout
from sti_hf.shards.store import ShardStore

REQUEST_BYTES = 1 << 19
"""Reads are at most this long, so that the first of a layer can start before the last has room."""

Requests = tuple[np.ndarray, np.ndarray]
"""Requests int64 `[n, 7]` and pieces int64 `[k, 4]` as `native.Streamer.start` takes them."""


@dataclass(frozen=True)
class Image:
    """Block-aligned ranges of a layer's file region, laid out one after the other from `start` of a buffer."""

    ranges: np.ndarray
    start: int

    @property
    def bytes(self) -> int:
        """Size of the image."""
        return int(self.ranges[:, 1].sum())

    def place(self, offsets: np.ndarray) -> np.ndarray:
        """Places in the buffer of file offsets, all of which lie in the ranges."""
        before = np.concatenate(([0], self.ranges[:, 1].cumsum()))
        index = np.searchsorted(self.ranges[:, 0], offsets, side="right") - 1
        return self.start + before[index] + offsets - self.ranges[index, 0]


@dataclass(frozen=True)
class LayerPlacement:
    """One executed layer in memory: its pieces bool `[KINDS, M]` in either buffer, and where those are."""

    layer: int
    preloaded: np.ndarray
    streamed: np.ndarray
    preload_image: Image
    staging_image: Image

    def locations(self, layout: LayerLayout) -> np.ndarray:
        """int64 `[KINDS, M]`: location of every piece, -1 for those the plan does not need."""
        places = np.full(self.preloaded.shape, -1, dtype=np.int64)
        for buffer, present, image in (
            (PRELOAD, self.preloaded, self.preload_image),
            (STAGING, self.streamed, self.staging_image),
        ):
            if present.any():
                places[present] = location(buffer, image.place(layout.piece_offset[present]))
        return places


class Placement:
    """A plan's layers in memory: `layers[k]` is the k-th executed layer, and group k of the streamer's reads.

    In the preload buffer they stand one after the other, in the staging buffer as `place_layers` says, side by side
    under load-then-execute.
    """

    def __init__(self, store: ShardStore, plan: ExecutionPlan) -> None:
        self.store = store
        self.staging_bytes = plan.staging_bytes
        self.files = {path: index for index, path in enumerate(dict.fromkeys(store.index.layer_files))}
        layouts = [store.layouts[layer] for layer in plan.layers]
        needed = [layout.pieces_of(plan.bits[layer]) for layout, layer in zip(layouts, plan.layers)]
        preloaded = [pieces & plan.preloaded_pieces[layer] for pieces, layer in zip(needed, plan.layers)]
        streamed = [pieces & ~held for pieces, held in zip(needed, preloaded)]
        held_ranges = [layout.read_ranges(pieces) for layout, pieces in zip(layouts, preloaded)]
        read_ranges = [layout.read_ranges(pieces) for layout, pieces in zip(layouts, streamed)]
        read_bytes = [int(ranges[:, 1].sum()) for ranges in read_ranges]
        held_bytes = [int(ranges[:, 1].sum()) for ranges in held_ranges]
        side_by_side = plan.strategy == "load_exec"
        starts = _one_after_the_other(read_bytes) if side_by_side else place_layers(read_bytes, plan.staging_bytes)
        self.preload_bytes = sum(held_bytes)
        self.layers = [
            LayerPlacement(layer, held, read, Image(held_range, held_start), Image(read_range, start))
            for layer, held, read, held_range, held_start, read_range, start in zip(
                plan.layers, preloaded, streamed, held_ranges, _one_after_the_other(held_bytes), read_ranges, starts
            )
        ]

    def requests(self, preload: Sequence[np.ndarray]) -> Requests:
        """Reads in plan order: of each executed layer k the pieces `preload[k]` (bool `[KINDS, M]`) that the preload
        buffer still lacks, then its streamed pieces, the latter only into memory whose layer has been released.
        """
        requests: list[list[int]] = []
        pieces = [np.empty((0, 4), dtype=np.int64)]
        for group, placed in enumerate(self.layers):
            for buffer, present, image in (
                (PRELOAD, preload[group] & placed.preloaded, placed.preload_image),
                (STAGING, placed.streamed, placed.staging_image),
            ):
                for offset, length, held in self._reads(placed, present, reads_downwards(group)):
                    start = int(image.place(np.array([offset]))[0])
                    free_after = self._free_after(group, start, start + length) if buffer == STAGING else 0
                    file = self.files[self.store.index.layer_files[placed.layer]]
                    requests.append(
                        [file, offset, length, start | buffer << LOCATION_SHIFT, group, free_after, len(held)]
                    )
                    pieces.append(self._checks(placed, buffer, image, held))
        return np.array(requests, dtype=np.int64).reshape(-1, 7), np.concatenate(pieces)

    @cached_property
    def streamed_requests(self) -> Requests:
        """Reads of an inference whose preload buffer is filled."""
        return self.requests([np.zeros_like(placed.preloaded) for placed in self.layers])

    def _reads(
        self, placed: LayerPlacement, present: np.ndarray, downwards: bool
    ) -> list[tuple[int, int, np.ndarray]]:
        """Offset and length of the requests for some pieces of a layer, and kind and slice of those it completes."""
        layout = self.store.layouts[placed.layer]
        kinds, slices = np.nonzero(present & (layout.piece_bytes > 0))
        first = layout.piece_offset[kinds, slices]
        last = first + layout.piece_bytes[kinds, slices]
        reads = []
        for offset, length in layout.read_ranges(present).tolist():
            for start in range(offset, offset + length, REQUEST_BYTES):
                end = min(start + REQUEST_BYTES, offset + length)
                # A piece is complete with the last request that has a part of it.
                completed = (first >= start) & (first < end) if downwards else (last > start) & (last <= end)
                reads.append((start, end - start, np.stack((kinds[completed], slices[completed]), axis=1)))
        return reads[::-1] if downwards else reads

    def _checks(self, placed: LayerPlacement, buffer: int, image: Image, held: np.ndarray) -> np.ndarray:
        """int64 `[k, 4]`: what the streamer needs to check the pieces `held` (`[k, 2]`, kind and slice)."""
        kinds, slices = held[:, 0], held[:, 1]
        layout = self.store.layouts[placed.layer]
        offsets = layout.piece_offset[kinds, slices]
        checksums = self.store.index.checksums[placed.layer][kinds, slices].astype(np.int64)
        places = location(buffer, image.place(offsets))
        return np.stack((places, layout.piece_bytes[kinds, slices], checksums, offsets), axis=1)

    def _free_after(self, group: int, start: int, end: int) -> int:
        """How many groups must have been released before bytes `start` to `end` of the staging buffer are free."""
        for earlier in range(group - 1, -1, -1):
            image = self.layers[earlier].staging_image
            if image.bytes and image.start < end and start < image.start + image.bytes:
                return earlier + 1
        return 0


def _one_after_the_other(sizes: Sequence[int]) -> list[int]:
    return (np.cumsum(sizes) - sizes).tolist()


def matrix_tables(store: ShardStore, placed: LayerPlacement, bits: np.ndarray) -> dict[str, np.ndarray]:
    """For every matrix of a layer, int64 `[m, 10]`: what `native.decompress` needs of its active slices."""
    layout, grid = store.layouts[placed.layer], store.grid
    active = np.flatnonzero(bits)
    places = placed.locations(layout)[:, active]
    fidelities = bits[active].astype(np.int64)
    is_full = fidelities == FULL
    tables = {}
    for index, (name, _) in enumerate(grid.rows):
        first = grid.first_row[name]
        table = np.full((len(active), 10), -1, dtype=np.int64)
        table[:, 0] = fidelities
        for plane in range(1, PLANES + 1):
            at = layout.bits_offset(plane) + first * grid.row_length // 8
            table[:, plane] = np.where(fidelities >= plane, places[plane] + at, -1)
        at_full = first * grid.row_length * layout.full_itemsize
        table[is_full, 1:] = -1
        table[is_full, 1] = places[FULL_PIECE, is_full] + at_full
        quantized = np.flatnonzero(~is_full)
        codebook = np.array([index * 4 * 2**k for k in fidelities[quantized]], dtype=np.int64)
        table[quantized, 7] = places[fidelities[quantized], quantized] + codebook
        if store.index.has_scales:
            codebooks = np.array([layout.codebook_bytes(k) for k in fidelities[quantized]], dtype=np.int64)
            table[quantized, 8] = places[fidelities[quantized], quantized] + codebooks + 2 * first
        table[quantized, 9] = places[HEADER_PIECE, quantized]
        tables[name] = table
    return tables
