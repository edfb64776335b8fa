"""One layer's nested codes, codebooks and scales, from its weights and the second moments of its inputs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sti_hf.model.architecture import Matrix
from sti_hf.model.grid import Grid
from sti_hf.process_memory import return_freed_memory
from sti_hf.shards.layout import PLANES
from sti_hf.shards.quantizers.calibrated.error_feedback import descend, feedback_codes
from sti_hf.shards.quantizers.calibrated.forward_passes import input_of
from sti_hf.shards.quantizers.calibrated.least_squares import (
    fit_codebook,
    fit_scales_of_inputs,
    fit_scales_of_outputs,
    look_up,
    refine_codebook,
)
from sti_hf.shards.quantizers.calibrated.outliers import find_outliers
from sti_hf.shards.quantizers.lloyd import quantize_matrix, row_scales

BITS = range(2, PLANES + 1)

MOMENT_BITS = (2, 3, 4)
"""Fidelities whose inputs are taken as they are there; above, inputs are as at the last of them."""


@dataclass(frozen=True)
class FitSettings:
    """How codes are chosen.

    - `error_weights`: what a fidelity's squared error counts for: with equal weights 2 bits would always win.
    - `feedback_bits`: the fidelities that feed back their errors.
    - `descents`: rounds in which codes that are there are bettered, after codebooks were fitted to them.
    """

    error_weights: Mapping[int, float]
    feedback_bits: tuple[int, ...]
    descents: int = 0


ENCODER = FitSettings({2: 1.0, 3: 2.0, 4: 4.0, 5: 12.0, 6: 48.0}, MOMENT_BITS)
LANGUAGE = FitSettings({2: 1.0, 3: 2.0, 4: 6.0, 5: 6.0, 6: 6.0}, tuple(BITS), descents=2)
LANGUAGE_VOCABULARY = FitSettings({2: 1.0, 3: 4.0, 4: 16.0, 5: 16.0, 6: 16.0}, tuple(BITS), descents=3)
"""Where all fidelities feed back, 5 and 6 bits need no more say than 4."""

Moments = Mapping[str, Tensor]
"""Second moments by name of the inputs: see `CalibrationPass.input_moments`."""


@dataclass
class FittedLayer:
    """A layer's codes, and for each fidelity 2 .. 6 its own codebooks and scales.

    `codes` uint8 `[M, slice_rows, row_length]`, `codebooks[k]` float32 `[M, matrices, 2**k]`, `scales[k]` float32
    `[M, slice_rows]`, `is_outlier` bool, as `codes`: kept exactly.
    """

    codes: Tensor
    codebooks: dict[int, Tensor]
    scales: dict[int, Tensor]
    is_outlier: Tensor

    def codebook_values(self, index: int, bits: int, grid: Grid) -> Tensor:
        """float32 `[slice_rows, row_length]`: slice `index` at fidelity `bits` before scaling, zero where an outlier
        is.
        """
        values = torch.empty(self.codes.shape[1:])
        codes, codebooks = self.codes[index].numpy() >> (PLANES - bits), self.codebooks[bits][index].numpy()
        for codebook, (name, rows) in zip(codebooks, grid.rows, strict=True):
            block = slice(grid.first_row[name], grid.first_row[name] + rows)
            # NumPy's: torch would make int64 indices of the codes, eight times their size.
            codebook.take(codes[block], out=values.numpy()[block], mode="clip")
        values[self.is_outlier[index]] = 0.0
        return values


def fit_layer(
    shards: Tensor,
    grid: Grid,
    matrices: Sequence[Matrix],
    moments: Mapping[int, Moments],
    settings: FitSettings = ENCODER,
) -> FittedLayer:
    """Fits float32 `[M, slice_rows, row_length]`; `moments[k]` are those of the inputs at fidelity k of MOMENT_BITS.

    Nothing of a slice depends on the weights of another, other than through the moments.
    """
    layer = FittedLayer(
        torch.empty(shards.shape, dtype=torch.uint8),
        {bits: torch.empty(grid.slices, len(grid.rows), 2**bits) for bits in BITS},
        {bits: torch.empty(shards.shape[:2]) for bits in BITS},
        torch.empty(shards.shape, dtype=torch.bool),
    )
    for index, matrix in enumerate(matrices):
        first, rows = grid.first_row[matrix.name], grid.matrix_rows[matrix.name]
        block = slice(first, first + rows)
        own = {bits: moments[min(bits, MOMENT_BITS[-1])][input_of(matrix)] for bits in BITS}
        fitted = fit_matrix(shards[:, block], own, matrix.by_columns, settings)
        layer.codes[:, block], codebooks, scales, layer.is_outlier[:, block] = fitted
        for bits in BITS:
            layer.codebooks[bits][:, index] = codebooks[bits]
            layer.scales[bits][:, block] = scales[bits]
        del fitted, codebooks, scales
        return_freed_memory()
    return layer


def fit_matrix(
    weights: Tensor, moments: Mapping[int, Tensor], by_columns: bool, settings: FitSettings
) -> tuple[Tensor, dict[int, Tensor], dict[int, Tensor], Tensor]:
    """Codes, codebooks, scales and outliers of one matrix float32 `[M, rows, row_length]` of every slice.

    They are as in `FittedLayer`, but a codebook is `[M, 2**k]`. `moments[k]` `[M or 1, inputs, inputs]` are those of
    the inputs at fidelity k.
    """

    def turned(stored: Tensor) -> Tensor:
        """From as stored to `[M, outputs, inputs]`, or back."""
        return stored.transpose(1, 2).contiguous() if by_columns else stored

    root_mean_square, is_outlier = row_scales(weights)
    is_outlier |= turned(find_outliers(turned(weights), moments[PLANES]))
    _, scale, codebooks = quantize_matrix(weights, root_mean_square, is_outlier)
    # The scale of a stored row is one of an output, or by columns one of an input.
    matrix, scales = turned(weights), scale[:, None, :] if by_columns else scale[..., None]
    outlier, kept = turned(is_outlier), turned(~is_outlier)
    fed_back = {bits: moments[bits] for bits in settings.feedback_bits}
    codes = feedback_codes(matrix, scales, codebooks, fed_back, settings.error_weights, outlier)
    fit = refine_codebook if settings.descents else fit_codebook
    for descent in range(settings.descents + 1):
        if descent:
            codes = descend(codes, matrix, scales, codebooks, moments, settings.error_weights, outlier)
        codebooks = {
            bits: fit(matrix * kept, codes >> (PLANES - bits), scales * kept, codebooks[bits], moments[bits])
            for bits in BITS
        }
    fit_scales = fit_scales_of_inputs if by_columns else fit_scales_of_outputs
    fitted_scales = {
        bits: fit_scales(
            matrix * kept, look_up(codebooks[bits], codes >> (PLANES - bits)) * kept, scale, moments[bits]
        )
        for bits in BITS
    }
    return turned(codes), codebooks, fitted_scales, is_outlier
