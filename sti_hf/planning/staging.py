"""The staging buffer: where the streamed layers lie in it, and how large it must be."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from sti_hf.shards.layout import BLOCK

MINIMUM_READ_AHEAD = 1 << 20
"""Bytes that a staging buffer has at least besides the largest layer, unless a budget forbids."""

STEPS = 8
"""Sizes between the largest layer and the smallest staging buffer that would be chosen without a budget."""

SLOWER = 1.15
"""How many times as long as with the largest staging buffer a forward may be predicted to take with the one chosen.
One that just keeps an ample T would have reading wait for room, and leave no time for a slow read."""


def place_layers(layer_bytes: Sequence[int], staging_bytes: int) -> list[int]:
    """First byte of every layer in a staging buffer that none of them exceeds. The runtime places them by this too.

    Where any two layers in a row fit, each layer follows the one before it, or starts over when it does not fit behind
    that one. Else a layer stands at one end of the buffer and the next at the other, so that reading can still be
    ahead by what is left: those at the upper end are read downwards (`reads_downwards`), so that what lies where the
    layer before them stands comes last. A byte can be written when the layers that had it before have been computed.
    """
    if max(map(sum, _runs(layer_bytes, 2)), default=0) > staging_bytes:
        return [staging_bytes - size if reads_downwards(k) else 0 for k, size in enumerate(layer_bytes)]
    starts, end = [], 0
    for size in layer_bytes:
        starts.append(end if end + size <= staging_bytes else 0)
        end = starts[-1] + size
    return starts


def reads_downwards(position: int) -> bool:
    """Whether the layer at this position among the executed ones is read from its last byte to its first."""
    return position % 2 == 1


def choose_staging(
    layer_bytes: Sequence[int],
    budget: int | None,
    latency: Callable[[int], float],
    target_latency: float,
) -> int:
    """Bytes of the smallest staging buffer with which a plan keeps T, and is not much slower than with the largest.

    The smallest considered holds the largest layer and `MINIMUM_READ_AHEAD`, the next ones any two, three, .. layers
    in a row, the last all of them. Where a budget forbids some of these, smaller ones are considered too: what one
    budget allows, a larger one does as well.

    Args:
        layer_bytes: streamed bytes of every layer, whole blocks.
        budget: bound in bytes; a layer that exceeds it alone still gets its room. None: no bound.
        latency: predicted seconds with a staging buffer of this size.
        target_latency: T. Where no buffer keeps it, the smallest of those with the lowest latency is taken.
    """
    total, largest = sum(layer_bytes), max(layer_bytes)
    smallest = largest + MINIMUM_READ_AHEAD
    windows = [max(map(sum, _runs(layer_bytes, length))) for length in range(2, len(layer_bytes) + 1)]
    sizes = {min(size, total) for size in (smallest, *windows) if size >= min(smallest, total)}
    if budget is not None and budget < max(sizes):
        sizes = {size for size in (*sizes, *windows, *_between(largest, smallest)) if size <= min(budget, total)}
        sizes |= {max(largest, min(budget // BLOCK * BLOCK, total))}
    latencies = {size: latency(size) for size in sorted(sizes)}
    fastest = min(latencies.values())
    wanted = max(fastest, min(target_latency, SLOWER * fastest))
    enough = [size for size, seconds in latencies.items() if seconds <= wanted]
    return next((size for size in enough if size >= smallest), enough[-1])


def _between(low: int, high: int) -> list[int]:
    """Sizes, whole blocks, that lie evenly between two."""
    return [low + (high - low) * step // STEPS // BLOCK * BLOCK for step in range(1, STEPS + 1)]


def _runs(values: Sequence[int], length: int) -> list[Sequence[int]]:
    return [values[start : start + length] for start in range(len(values) - length + 1)]
