"""The vocabulary of a language model as nested codes: strips of rows of the linear over it."""

from __future__ import annotations

from torch import Tensor

from sti_hf.errors import SourceError
from sti_hf.model.grid import Grid
from sti_hf.shards.quantizers.base import QuantizedLayer, collect_outliers
from sti_hf.shards.quantizers.calibrated.nested_fit import BITS, LANGUAGE_VOCABULARY, fit_matrix


class VocabularyQuantizer:
    """A `Quantizer` for strips of any number of rows of the vocabulary of the model that was calibrated.

    `moments` float32 `[hidden, hidden]`: second moments of the hidden states that are multiplied with the rows. Rows
    of zeros (padding) are kept as zeros. A strip's codes depend on its own rows only.
    """

    def __init__(self, moments: Tensor) -> None:
        self._moments = moments[None]

    def quantize_layer(self, layer: int, shards: Tensor, grid: Grid) -> QuantizedLayer:
        """See `Quantizer`: `grid` has one matrix, whose rows are as long as the hidden states.

        Raises `ValueError` for shards of another kind.
        """
        if len(grid.rows) != 1 or shards.shape[1:] != (grid.slice_rows, self._moments.shape[-1]):
            raise SourceError(
                f"Shards of shape {list(shards.shape)} are not strips of a vocabulary whose rows have "
                f"{self._moments.shape[-1]} weights."
            )
        codes, codebooks, scales, is_outlier = fit_matrix(
            shards, dict.fromkeys(BITS, self._moments), False, LANGUAGE_VOCABULARY
        )
        is_outlier &= shards != 0
        return QuantizedLayer(
            grid,
            codes=codes,
            codebooks={bits: codebooks[bits][:, None] for bits in BITS},
            scales={bits: scales[bits].clamp(1e-7, 6e4).half() for bits in BITS},
            outliers=tuple(collect_outliers(shard, mask, grid) for shard, mask in zip(shards, is_outlier)),
        )
