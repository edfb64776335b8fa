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
from sti_hf.runtime.buffers import PRELOAD, STAGING, location
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
        requests = [np.empty((0, 7), dtype=np.int64)]
        pieces = [np.empty((0, 4), dtype=np.int64)]
        for group, placed in enumerate(self.layers):
            for buffer, present, image in (
                (PRELOAD, preload[group] & placed.preloaded, placed.preload_image),
                (STAGING, placed.streamed, placed.staging_image),
            ):
                if present.any():
                    read, checked = self._reads(group, present, image, buffer)
                    requests.append(read)
                    pieces.append(checked)
        return np.concatenate(requests), np.concatenate(pieces)

    @cached_property
    def streamed_requests(self) -> Requests:
        """Reads of an inference whose preload buffer is filled."""
        return self.requests([np.zeros_like(placed.preloaded) for placed in self.layers])

    def _reads(self, group: int, present: np.ndarray, image: Image, buffer: int) -> Requests:
        """The reads for some pieces of a layer, and what it takes to check them."""
        layer = self.layers[group].layer
        layout, downwards = self.store.layouts[layer], reads_downwards(group)
        spans = [
            (start, min(start + REQUEST_BYTES, offset + length))
            for offset, length in layout.read_ranges(present).tolist()
            for start in range(offset, offset + length, REQUEST_BYTES)
        ]
        starts, ends = np.array(spans[::-1] if downwards else spans, dtype=np.int64).T
        kinds, slices = np.nonzero(present & (layout.piece_bytes > 0))
        first, sizes = layout.piece_offset[kinds, slices], layout.piece_bytes[kinds, slices]
        # A piece is complete with the last request that has a part of it.
        completed = (first if downwards else first + sizes - 1)[:, None]
        request_of = ((completed >= starts) & (completed < ends)).argmax(axis=1)
        order = np.argsort(request_of, kind="stable")
        places = image.place(starts)
        free_after = self._free_after(group, places, places + ends - starts) if buffer == STAGING else 0
        requests = np.empty((len(starts), 7), dtype=np.int64)
        requests[:, 0] = self.files[self.store.index.layer_files[layer]]
        requests[:, 1], requests[:, 2], requests[:, 3] = starts, ends - starts, location(buffer, places)
        requests[:, 4], requests[:, 5] = group, free_after
        requests[:, 6] = np.bincount(request_of, minlength=len(starts))
        checksums = self.store.index.checksums[layer][kinds, slices].astype(np.int64)
        checked = np.stack((location(buffer, image.place(first)), sizes, checksums, first), axis=1)
        return requests, checked[order]

    def _free_after(self, group: int, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """How many groups must have been released before each of these ranges of the staging buffer is free."""
        free_after = np.zeros_like(starts)
        for earlier in range(group):
            image = self.layers[earlier].staging_image
            if image.bytes:
                free_after[(image.start < ends) & (starts < image.start + image.bytes)] = earlier + 1
        return free_after


def _one_after_the_other(sizes: Sequence[int]) -> list[int]:
    return (np.cumsum(sizes) - sizes).tolist()


def matrix_tables(store: ShardStore, placed: LayerPlacement, bits: np.ndarray) -> dict[str, np.ndarray]:
    """For every matrix of a layer, int64 `[m, 10]`: what `native.decompress` needs of its active slices."""
    layout, grid = store.layouts[placed.layer], store.grid
    active = np.flatnonzero(bits)
    places = placed.locations(layout)[:, active]
    fidelities = bits[active].astype(np.int64)
    first = np.array([[grid.first_row[name]] for name in grid.matrices])
    tables = np.full((len(first), len(active), 10), -1, dtype=np.int64)
    tables[..., 0] = fidelities
    for plane in range(1, PLANES + 1):
        at = layout.bits_offset(plane) + first * grid.row_length // 8
        tables[..., plane] = np.where(fidelities >= plane, places[plane] + at, -1)
    full = np.flatnonzero(fidelities == FULL)
    tables[:, full, 1:] = -1
    tables[:, full, 1] = places[FULL_PIECE, full] + first * grid.row_length * layout.full_itemsize
    quantized = np.flatnonzero(fidelities != FULL)
    depths = fidelities[quantized]
    planes = places[depths, quantized]
    tables[:, quantized, 7] = planes + np.arange(len(first))[:, None] * 4 * 2**depths
    if store.index.has_scales:
        codebooks = np.array([layout.codebook_bytes(depth) for depth in depths], dtype=np.int64)
        tables[:, quantized, 8] = planes + codebooks + 2 * first
    tables[:, quantized, 9] = places[HEADER_PIECE, quantized]
    return dict(zip(grid.matrices, tables))
