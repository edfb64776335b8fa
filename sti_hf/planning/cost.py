"""What IO and compute cost on a device."""

from __future__ import annotations

import json
import math
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from sti_hf.errors import ProfileError
from sti_hf.forking import cached_property
from sti_hf.planning.workload import Workload
from sti_hf.shards.layout import BLOCK, FIDELITIES

VERSION = 4
"""Since 4 attention is priced apart from what grows with all tokens, and what comes before the layers from what comes
after them."""


@dataclass(frozen=True)
class DeviceProfile:
    """T_io and T_comp of a device for a model (STI, section 4), as measured once. Seconds and bytes throughout.

    Args:
        request_seconds: cost of one read request, besides its bytes.
        bytes_per_second: rate of large direct reads, one after the other.
        row_seconds: seconds for one embedding row when rows are read in parallel, besides the bytes.
        delay_per_byte: seconds by which each byte read delays compute: both use the processors and the memory.
        tokens, widths: ascending token counts, of all sequences together, and numbers of slices at which compute was
            measured.
        layer_seconds: `[len(tokens)][len(widths)]`, compute of one layer on short sequences, without decompression.
        pairs: ascending numbers of pairs of tokens (`Workload.pairs`) at which attention was measured.
        attention_seconds: `[len(pairs)]`, what the attention of one sequence adds to a layer of all slices.
        decompress_seconds: seconds for one weight, by fidelity in bits.
        before_seconds, after_seconds: `[len(tokens)]`, of a forward before its first layer, without reading embedding
            rows, and after its last.
        compute_dtype, gemm: with what the compute was measured.

    Raises `ValueError` for a number that is negative or not finite, and for shapes that do not fit.
    """

    request_seconds: float
    bytes_per_second: float
    row_seconds: float
    delay_per_byte: float
    tokens: tuple[int, ...]
    widths: tuple[int, ...]
    layer_seconds: tuple[tuple[float, ...], ...]
    pairs: tuple[int, ...]
    attention_seconds: tuple[float, ...]
    decompress_seconds: Mapping[int, float]
    before_seconds: tuple[float, ...]
    after_seconds: tuple[float, ...]
    compute_dtype: str
    gemm: str

    def __post_init__(self) -> None:
        for name in ("request_seconds", "bytes_per_second", "row_seconds", "delay_per_byte"):
            object.__setattr__(self, name, _measured(name, getattr(self, name)))
        if self.bytes_per_second == 0:
            raise ProfileError("bytes_per_second of a device profile must be positive.")
        for name in ("tokens", "widths", "pairs"):
            object.__setattr__(self, name, _ascending(name, getattr(self, name)))
        rows = tuple(_measured_row("layer_seconds", row, len(self.widths)) for row in self.layer_seconds)
        if len(rows) != len(self.tokens):
            raise ProfileError(f"layer_seconds must have {len(self.tokens)} rows, one a token count, not {len(rows)}.")
        object.__setattr__(self, "layer_seconds", rows)
        for name, grid in (
            ("attention_seconds", self.pairs),
            ("before_seconds", self.tokens),
            ("after_seconds", self.tokens),
        ):
            object.__setattr__(self, name, _measured_row(name, getattr(self, name), len(grid)))
        unknown = set(self.decompress_seconds) - set(FIDELITIES)
        if unknown:
            raise ProfileError(f"decompress_seconds has a fidelity of {min(unknown)} bits; there are {FIDELITIES}.")
        seconds = {bits: _measured("decompress_seconds", value) for bits, value in self.decompress_seconds.items()}
        object.__setattr__(self, "decompress_seconds", seconds)

    @property
    def rises(self) -> bool:
        """Whether a layer takes some time, and nothing takes less time with more tokens or slices."""
        layers = self._layer_seconds
        each = (layers, layers.T, *map(np.array, (self.attention_seconds, self.before_seconds, self.after_seconds)))
        return bool((layers > 0).all() and all((np.diff(seconds, axis=0) >= 0).all() for seconds in each))

    @cached_property
    def _layer_seconds(self) -> np.ndarray:
        return np.array(self.layer_seconds)

    def io_seconds(self, num_bytes: Any, requests: Any) -> Any:
        """Seconds to read this many bytes in this many requests: numbers, or arrays of one shape."""
        return num_bytes / self.bytes_per_second + requests * self.request_seconds

    def delay_seconds(self, num_bytes: Any) -> Any:
        """Seconds by which reading this many bytes delays compute: a number, or an array."""
        return num_bytes * self.delay_per_byte

    def gemm_seconds(self, workload: Workload, width: int) -> float:
        """Seconds of one layer's compute with `width` slices, without decompression.

        Linear between the measured token counts, widths and pairs, in proportion above the most, and as at the fewest
        below them: so that no workload costs less than a smaller one. All slices share in attention equally.
        """
        by_width = _interpolate(workload.all_tokens, self.tokens, self._layer_seconds)
        attention = float(_interpolate(workload.pairs, self.pairs, np.array(self.attention_seconds)))
        return float(_interpolate(width, self.widths, by_width)) + workload.batch * attention * width / self.widths[-1]

    def decompress_weight_seconds(self, bits: int) -> float:
        """Seconds to decompress one weight; raises `ValueError` where this fidelity was not measured."""
        try:
            return self.decompress_seconds[bits]
        except KeyError:
            raise ProfileError(
                f"The device profile has no decompression time at {bits} bits; profile the device again."
            ) from None

    def layer_compute(self, workload: Workload, bits_row: Sequence[int], slice_weights: int) -> float:
        """T_comp of one layer: its active slices (bits > 0, one entry a slice) decompressed and multiplied."""
        active = [int(bits) for bits in bits_row if bits]
        decompress = slice_weights * sum(map(self.decompress_weight_seconds, active))
        return self.gemm_seconds(workload, len(active)) + decompress

    def embedding_seconds(self, tokens: int, row_bytes: int, position_bytes: int = 0) -> float:
        """Seconds to read the embedding rows of `tokens` different tokens, all at once, and those of their positions,
        neighbours of `position_bytes` in all.

        Rows are read as whole blocks. A table of rows of `row_bytes` that starts on a block touches
        `(row_bytes + BLOCK - g) / BLOCK` blocks a row on average, g being the greatest common divisor of the two.
        """
        positions = position_bytes / self.bytes_per_second
        if row_bytes == 0:
            return positions
        touched = row_bytes + BLOCK - math.gcd(row_bytes, BLOCK)
        return tokens * max(self.row_seconds, touched / self.bytes_per_second) + positions

    def before_layers(self, workload: Workload) -> float:
        """Seconds of a forward before its first layer, without reading embedding rows."""
        return float(_interpolate(workload.all_tokens, self.tokens, np.array(self.before_seconds)))

    def after_layers(self, workload: Workload) -> float:
        """Seconds of a forward after its last layer."""
        return float(_interpolate(workload.all_tokens, self.tokens, np.array(self.after_seconds)))

    def to_json(self) -> str:
        """The profile as JSON; `from_json` gives it back exactly."""
        return json.dumps({"version": VERSION, **asdict(self)}, indent=2)

    @classmethod
    def from_json(cls, text: str) -> DeviceProfile:
        """Reads what `to_json` wrote; raises `ValueError` for anything else."""
        try:
            content = json.loads(text)
            version = content.pop("version")
            if version != VERSION:
                raise ProfileError(f"it has version {version}, this release reads {VERSION}")
            content["decompress_seconds"] = {int(bits): value for bits, value in content["decompress_seconds"].items()}
            return cls(**content)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ProfileError(f"This is not a device profile that can be used: {error}. Profile again.") from error


def _interpolate(x: int, grid: Sequence[int], values: np.ndarray) -> np.ndarray:
    """Values along axis 0 at x. Lines beyond the grid would cross: what rises along the other axis must do so here."""
    if x <= grid[0]:
        return np.asarray(values[0])
    if x >= grid[-1]:
        return np.asarray(values[-1] * (x / grid[-1]))
    left = int(np.searchsorted(grid, x)) - 1
    share = (x - grid[left]) / (grid[left + 1] - grid[left])
    return np.asarray(values[left] + share * (values[left + 1] - values[left]))


def _measured(name: str, value: Any) -> float:
    try:
        number = math.nan if isinstance(value, bool | str) else float(value)
    except (TypeError, ValueError, OverflowError):
        number = math.nan
    if not 0 <= number < math.inf:
        raise ProfileError(f"{name} of a device profile must be a finite number of at least 0, not {value!r}.")
    return number


def _measured_row(name: str, values: Sequence[float], length: int) -> tuple[float, ...]:
    row = tuple(_measured(name, value) for value in values)
    if len(row) != length:
        raise ProfileError(f"{name} of a device profile must have {length} entries, not {len(row)}.")
    return row


def _ascending(name: str, values: Sequence[int]) -> tuple[int, ...]:
    whole = all(isinstance(value, numbers.Integral) and not isinstance(value, bool) for value in values)
    ascending = tuple(map(int, values)) if whole else ()
    if not ascending or ascending[0] < 1 or any(a >= b for a, b in pairwise(ascending)):
        raise ProfileError(
            f"{name} of a device profile must be ascending whole numbers from 1 up, not {list(values)}."
        )
    return ascending
