"""Where every piece of a plan is in memory, and the reads that bring it there.

The memory that a run of reads fills keeps the distances of the file, so a piece's place follows from its offset.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sti_hf import native
from sti_hf.forking import cached_property
from sti_hf.planning import ExecutionPlan
from sti_hf.planning.refinement import EXTRA, PLANNED, REQUIRED, refined_staging
from sti_hf.planning.staging import place_layers, reads_downwards
from sti_hf.runtime.buffers import LOCATION_SHIFT, PRELOAD, STAGING, location
from sti_hf.shards.layout import BLOCK, FIDELITIES, FULL, FULL_PIECE, HEADER_PIECE, PLANES, LayerLayout
from sti_hf.shards.store import ShardStore

REQUEST_BYTES = 1 << 19
"""Reads are at most this long, so that the first of a layer can start before the last has room."""

Requests = tuple[np.ndarray, np.ndarray]
"""`native.REQUEST` `[n]` and `native.PIECE` `[k]` as `native.Streamer.start` takes them."""


@dataclass(frozen=True)
class Image:
    """Block-aligned ranges of a layer's file region (offset and length of each), laid out one after the other from
    `start` of a buffer."""

    ranges: np.ndarray
    start: int

    @property
    def bytes(self) -> int:
        """Size of the image."""
        return _covered_bytes(self.ranges)

    def place(self, offsets: np.ndarray) -> np.ndarray:
        """Places in the buffer of file offsets, all of which lie in the ranges."""
        firsts, lengths = self.ranges.T
        before = np.concatenate(([0], lengths.cumsum()))
        index = np.searchsorted(firsts, offsets, side="right") - 1
        return self.start + before[index] + offsets - firsts[index]


@dataclass(frozen=True)
class LayerPlacement:
    """One executed layer in memory: its pieces bool `[KINDS, M]` in either buffer, and where those are. `extra` ones,
    beyond the plan, stand in the staging buffer behind the `streamed`."""

    layer: int
    preloaded: np.ndarray
    streamed: np.ndarray
    extra: np.ndarray
    preload_image: Image
    staging_image: Image
    extra_image: Image

    @property
    def staged_end(self) -> int:
        """Where the layer ends in the staging buffer; it begins with `staging_image`."""
        return self.extra_image.start + self.extra_image.bytes

    def parts(self) -> Iterator[tuple[int, np.ndarray, Image]]:
        """Pieces that stand together, in the order in which they are read: buffer, pieces, image."""
        yield PRELOAD, self.preloaded, self.preload_image
        yield STAGING, self.streamed, self.staging_image
        yield STAGING, self.extra, self.extra_image

    def locations(self, layout: LayerLayout) -> np.ndarray:
        """int64 `[KINDS, M]`: location of every piece, -1 for those that are never read."""
        places = np.full(self.preloaded.shape, -1, dtype=np.int64)
        for buffer, present, image in self.parts():
            if present.any():
                places[present] = location(buffer, image.place(layout.piece_offset[present]))
        return places


class Placement:
    """A plan's layers in memory: `layers[step]` is the one that a step executes, which the streamer's reads name too.

    In the preload buffer they stand one after the other, in the staging buffer as `place_layers` says, side by side
    under load-then-execute.

    Args:
        store, plan: a store and a plan for it.
        wanted: int64 `[N, M]`, for a run that is refined (`sti_hf.planning.refinement`): fidelities to read up to
            where there is time, the plan's at least. Then the lowest planes of every layer are read first.
        staging_budget: bound in bytes of the staging buffer of such a run. Where it has no room for planes beyond the
            plan, there are none; the plan's own buffer it has in any case.
    """

    def __init__(
        self,
        store: ShardStore,
        plan: ExecutionPlan,
        wanted: np.ndarray | None = None,
        staging_budget: int | None = None,
    ) -> None:
        self.store = store
        self.refined = wanted is not None
        self.files = {path: index for index, path in enumerate(dict.fromkeys(store.stack.layer_files))}
        layouts = [store.layouts[layer] for layer in plan.layers]
        needed = [layout.pieces_of(plan.bits[layer]) for layout, layer in zip(layouts, plan.layers)]
        held = _Pieces(layouts, [pieces & plan.preloaded_pieces[layer] for pieces, layer in zip(needed, plan.layers)])
        read = _Pieces(layouts, [pieces & ~kept for pieces, kept in zip(needed, held.pieces)])
        more, self.staging_bytes = _Pieces(layouts, [np.zeros_like(pieces) for pieces in needed]), plan.staging_bytes
        if wanted is not None:
            beyond = [layout.pieces_of(wanted[k]) & ~each for layout, k, each in zip(layouts, plan.layers, needed)]
            for candidate in (more, _Pieces(layouts, beyond)):
                staging_bytes = refined_staging(read.bytes, read.bytes_with(candidate), plan.staging_bytes)
                if staging_budget is None or staging_bytes <= staging_budget:
                    more, self.staging_bytes = candidate, staging_bytes
        sizes = read.bytes_with(more)
        side_by_side = plan.strategy == "load_exec"
        starts = _one_after_the_other(sizes) if side_by_side else place_layers(sizes, self.staging_bytes)
        held_starts = _one_after_the_other(held.bytes)
        self.preload_bytes = sum(held.bytes)
        self.layers = [
            LayerPlacement(
                layer=layer,
                preloaded=held.pieces[k],
                streamed=read.pieces[k],
                extra=more.pieces[k],
                preload_image=Image(held.ranges[k], held_starts[k]),
                staging_image=Image(read.ranges[k], starts[k]),
                extra_image=Image(more.ranges[k], starts[k] + read.bytes[k]),
            )
            for k, layer in enumerate(plan.layers)
        ]

    def requests(self, preload: Sequence[np.ndarray]) -> Requests:
        """Reads in plan order: of each step the pieces `preload[step]` (bool `[KINDS, M]`) that the preload
        buffer still lacks, then its streamed pieces, the latter only into memory whose layer has been released. Those
        beyond the plan are left for when the buffer is filled.
        """
        filled = not any(pieces.any() for pieces in preload)
        requests = [np.empty(0, dtype=native.REQUEST)]
        pieces = [np.empty(0, dtype=native.PIECE)]
        for step, placed in enumerate(self.layers):
            wanted = (preload[step] & placed.preloaded, placed.streamed, placed.extra & filled)
            for present, (buffer, _, image) in zip(wanted, placed.parts()):
                if present.any():
                    read, checked = self._reads(step, present, image, buffer)
                    requests.append(read)
                    pieces.append(checked)
        return np.concatenate(requests), np.concatenate(pieces)

    @cached_property
    def streamed_requests(self) -> Requests:
        """Reads of an inference whose preload buffer is filled."""
        return self.requests([np.zeros_like(placed.preloaded) for placed in self.layers])

    def purposes(self, requests: np.ndarray) -> np.ndarray:
        """int64 `[n]`: what each of the requests of a refined run is for (`sti_hf.planning.refinement`)."""
        steps, staged = requests["step"], requests["target"] >> LOCATION_SHIFT == STAGING
        places = requests["target"] & ((1 << LOCATION_SHIFT) - 1)
        planned = requests["offset"] >= np.array([self._first_above(placed) for placed in self.layers])[steps]
        extra = places >= np.array([placed.extra_image.start for placed in self.layers])[steps]
        return np.select([~staged, extra, planned], [REQUIRED, EXTRA, PLANNED], REQUIRED)

    def _first_above(self, placed: LayerPlacement) -> int:
        """Where in the file a layer's reads above the lowest fidelity begin: behind the block in which that ends."""
        offset = int(self.store.layouts[placed.layer].piece_offset[min(FIDELITIES) + 1, 0])
        return -(-offset // BLOCK) * BLOCK

    def _reads(self, step: int, present: np.ndarray, image: Image, buffer: int) -> Requests:
        """The reads for some pieces of a layer, and what it takes to check them."""
        placed = self.layers[step]
        layout, downwards = self.store.layouts[placed.layer], reads_downwards(step) and not self.refined
        ranges = [(offset, offset + length) for offset, length in layout.read_ranges(present).tolist()]
        if self.refined and image is placed.staging_image:
            ranges = _cut(ranges, self._first_above(placed))
        spans = _spans(ranges)
        starts, ends = np.array(spans[::-1] if downwards else spans, dtype=np.int64).T
        pieces = self._checked(placed.layer, present & (layout.piece_bytes > 0), image, buffer)
        # A piece is complete with the last request that has a part of it.
        completed = (pieces["offset"] + (0 if downwards else pieces["length"] - 1))[:, None]
        request_of = ((completed >= starts) & (completed < ends)).argmax(axis=1)
        places = image.place(starts)
        requests = np.empty(len(starts), dtype=native.REQUEST)
        requests["file"] = self.files[self.store.stack.layer_files[placed.layer]]
        requests["offset"], requests["length"] = starts, ends - starts
        requests["target"] = location(buffer, places)
        requests["step"] = step
        requests["wait_for"] = self._free_after(step, places, places + ends - starts) if buffer == STAGING else 0
        requests["pieces"] = np.bincount(request_of, minlength=len(starts))
        return requests, pieces[np.argsort(request_of, kind="stable")]

    def _checked(self, layer: int, present: np.ndarray, image: Image, buffer: int) -> np.ndarray:
        """`native.PIECE`: where these pieces of a layer stand in a buffer, and what they must be."""
        layout = self.store.layouts[layer]
        pieces = np.empty(np.count_nonzero(present), dtype=native.PIECE)
        pieces["offset"], pieces["length"] = layout.piece_offset[present], layout.piece_bytes[present]
        pieces["target"] = location(buffer, image.place(pieces["offset"]))
        pieces["crc32c"] = self.store.stack.checksums[layer][present]
        return pieces

    def _free_after(self, step: int, starts: np.ndarray, ends: np.ndarray) -> np.ndarray:
        """How many steps must have been released before each of these ranges of the staging buffer is free."""
        free_after = np.zeros_like(starts)
        for earlier in range(step):
            start, end = self.layers[earlier].staging_image.start, self.layers[earlier].staged_end
            if start < end:
                free_after[(start < ends) & (starts < end)] = earlier + 1
        return free_after


class _Pieces:
    """Some pieces of every executed layer (bool `[KINDS, M]` each), the reads that cover them, and how long those
    are."""

    def __init__(self, layouts: Sequence[LayerLayout], pieces: list[np.ndarray]) -> None:
        self.pieces = pieces
        self.ranges = [layout.read_ranges(each) for layout, each in zip(layouts, pieces)]
        self.bytes = [_covered_bytes(ranges) for ranges in self.ranges]

    def bytes_with(self, others: _Pieces) -> list[int]:
        """Bytes of every layer, together with those of `others`."""
        return [one + other for one, other in zip(self.bytes, others.bytes)]


def _covered_bytes(ranges: np.ndarray) -> int:
    """Bytes in some ranges, each an offset and a length."""
    _, lengths = ranges.T
    return int(lengths.sum())


def _spans(ranges: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """First and last byte + 1 of every request that it takes to read these ranges."""
    return [
        (start, min(start + REQUEST_BYTES, end)) for first, end in ranges for start in range(first, end, REQUEST_BYTES)
    ]


def _cut(ranges: list[tuple[int, int]], place: int) -> list[tuple[int, int]]:
    """Ranges, of which one that goes across `place` is cut there."""
    parts = [part for first, end in ranges for part in ((first, min(place, end)), (max(place, first), end))]
    return [(first, end) for first, end in parts if first < end]


def _one_after_the_other(sizes: Sequence[int]) -> list[int]:
    return (np.cumsum(sizes) - sizes).tolist()


def matrix_tables(store: ShardStore, placed: LayerPlacement, bits: np.ndarray) -> dict[str, np.ndarray]:
    """For every matrix of a layer, `native.SLICE` `[m]`: what `native.Decompression` needs of its active slices."""
    layout, grid = store.layouts[placed.layer], store.grid
    active = np.flatnonzero(bits)
    places, fidelities = placed.locations(layout)[:, active], bits[active].astype(np.int64)
    first = np.array([[grid.first_row[name]] for name in grid.matrices])
    tables = np.full((len(first), len(active)), -1, dtype=native.SLICE)  # a location of -1: not there
    tables["fidelity"] = fidelities
    full, quantized = np.flatnonzero(fidelities == FULL), np.flatnonzero(fidelities != FULL)
    tables["full_weights"][:, full] = places[FULL_PIECE, full] + first * grid.row_length * layout.full_itemsize
    depths = fidelities[quantized]
    for plane in range(1, PLANES + 1):
        used = quantized[depths >= plane]
        matrix_bits = layout.bits_offset(plane) + first * grid.row_length // 8
        tables["planes"][:, used, plane - 1] = places[plane, used] + matrix_bits
    highest_plane = places[depths, quantized]
    tables["codebook"][:, quantized] = highest_plane + np.arange(len(first))[:, None] * 4 * 2**depths
    if store.index.has_scales:
        codebooks = np.array([layout.codebook_bytes(depth) for depth in depths], dtype=np.int64)
        tables["scales"][:, quantized] = highest_plane + codebooks + 2 * first
    tables["outliers"][:, quantized] = places[HEADER_PIECE, quantized]
    return dict(zip(grid.matrices, tables))
