"""The calibrated quantizer: nested codes that follow the model's own activations on a few hundred texts, no labels.

Layer after layer, codes are chosen with error feedback for all fidelities at once (`error_feedback`), codebooks and
row scales are fitted to the outputs (`least_squares`), on inputs as the quantized layers before give them. The few
weights that carry most of an output stay exact (`outliers`). At the end the row scales of the lowest fidelities are
tuned against the full model (`scale_tuning`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sti_hf.architectures import get_architecture
from sti_hf.architectures.base import Architecture
from sti_hf.architectures.grid import Grid
from sti_hf.architectures.layer_runner import Inputs
from sti_hf.process_memory import return_freed_memory
from sti_hf.shards.layout import FIDELITIES, FULL
from sti_hf.shards.partition import join_layer, split_layer
from sti_hf.shards.quantizers.base import QuantizedLayer, collect_outliers
from sti_hf.shards.quantizers.calibrated.forward_passes import CalibrationPass
from sti_hf.shards.quantizers.calibrated.frozen_linear import fast_dtype, frozen_linears
from sti_hf.shards.quantizers.calibrated.nested_fit import BITS, MOMENT_BITS, FittedLayer, fit_layer
from sti_hf.shards.quantizers.calibrated.outliers import SparseWeights
from sti_hf.shards.quantizers.calibrated.scale_tuning import ScaleTuner
from sti_hf.shards.quantizers.calibrated.scratch import Scratch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TUNING_PASSES = 10
"""How often the row scales are tuned on every batch."""


class CalibratedQuantizer:
    """A `Quantizer` for the shards of the one model that it was calibrated on. Made by `calibrate`."""

    def __init__(self, scratch: Scratch, slice_indices: Sequence[dict[bytes, int]]) -> None:
        self._scratch = scratch
        self._slice_indices = slice_indices

    def quantize_layer(self, layer: int, shards: Tensor, grid: Grid) -> QuantizedLayer:
        """See `Quantizer`. Slices may come in any order: each is known by its weights.

        Raises `ValueError` for a shard that is not of the calibrated model.
        """
        known = self._slice_indices[layer] if layer < len(self._slice_indices) else {}
        digests = [_digest(shard) for shard in shards]
        if not all(digest in known for digest in digests):
            raise ValueError(f"Layer {layer} is not of the model that was calibrated; calibrate on this model.")
        order = [known[digest] for digest in digests]
        fitted = _load(self._scratch, layer)
        return QuantizedLayer(
            grid,
            codes=fitted.codes[order],
            codebooks={bits: fitted.codebooks[bits][order] for bits in BITS},
            scales={bits: fitted.scales[bits][order].clamp(1e-7, 6e4).half() for bits in BITS},
            outliers=tuple(
                collect_outliers(shard, fitted.is_outlier[index], grid) for shard, index in zip(shards, order)
            ),
        )


def calibrate(
    model: PreTrainedModel,
    batches: Sequence[Inputs],
    *,
    tuning_steps: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CalibratedQuantizer:
    """Fits the nested codes of a model's shards to what it computes on calibration text.

    Args:
        model: its weights change while this runs, and are the same afterwards.
        batches: tokenized texts, padded, as the model's forward takes them; 512 texts in batches of some 500 tokens
            are plenty. No labels.
        tuning_steps: steps of gradient descent on the row scales, a batch each: 0 takes less time and is less
            accurate. None: `TUNING_PASSES` times all batches.
        seed: of the order in which batches are drawn. The same seed and thread count give the same codes.
        progress: called now and then with the work done since, and the work that there is in all.

    Raises:
        ValueError: there are no batches, or the weights are not float32.
        UnsupportedArchitectureError: see `get_architecture`.
    """
    if not batches:
        raise ValueError("There is no calibration text; give at least one batch, better a few hundred sentences.")
    architecture = get_architecture(model.config)
    calibration = _Calibration(model, architecture, architecture.grid(model.config), batches)
    return calibration.run(TUNING_PASSES * len(batches) if tuning_steps is None else tuning_steps, seed, progress)


class _Calibration:
    """One run of `calibrate`."""

    def __init__(
        self, model: PreTrainedModel, architecture: Architecture, grid: Grid, batches: Sequence[Inputs]
    ) -> None:
        self._model, self._architecture, self._grid, self._batches = model, architecture, grid, batches
        self._linears = architecture.linears(model)
        if any(linear.weight.dtype != torch.float32 for layer in self._linears for linear in layer.values()):
            raise ValueError("Calibration needs the model in float32; load it with dtype=torch.float32.")
        self._scratch = Scratch()

    def run(self, tuning_steps: int, seed: int, progress: Callable[[int, int], None]) -> CalibratedQuantizer:
        was_training = self._model.training
        self._model.eval()
        for layer in range(self._grid.layers):
            self._scratch.save(f"full.{layer}", {name: m.weight for name, m in self._linears[layer].items()})
        work = _Progress(progress, self._grid.layers * LAYER_WORK + tuning_steps)
        linears = [linear for layer in self._linears for linear in layer.values()]
        try:
            with frozen_linears(linears, fast_dtype()):
                tuner = ScaleTuner(self._model, self._architecture, self._batches, self._scratch)
                slice_indices = self._fit_codes(work)
                self._tune_scales(tuner, tuning_steps, seed, work)
        finally:
            self._model.train(was_training)
        return CalibratedQuantizer(self._scratch, slice_indices)

    @torch.no_grad()
    def _fit_codes(self, work: _Progress) -> list[dict[bytes, int]]:
        grid, matrices = self._grid, self._architecture.matrices
        calibration_pass = CalibrationPass(
            self._model, self._architecture, grid, self._batches, MOMENT_BITS, self._scratch
        )
        slice_indices = []
        for layer in range(grid.layers):
            shards = split_layer(self._scratch.load(f"full.{layer}"), matrices, grid, range(grid.slices))
            slice_indices.append({_digest(shard): index for index, shard in enumerate(shards)})
            moments = {bits: calibration_pass.input_moments(layer, bits) for bits in MOMENT_BITS}
            fitted = fit_layer(shards, grid, matrices, moments)
            for bits in MOMENT_BITS:
                quantized = fitted.codebook_values(bits, grid) * fitted.scales[bits][..., None]
                quantized += shards * fitted.is_outlier
                self._set_weights(layer, join_layer(quantized, matrices, grid))
                calibration_pass.advance(layer, bits)
            _save(self._scratch, layer, fitted)
            return_freed_memory()
            work.add(LAYER_WORK)
        return slice_indices

    def _tune_scales(self, tuner: ScaleTuner, steps: int, seed: int, work: _Progress) -> None:
        grid = self._grid
        counts = [rows for _, rows in grid.rows]
        scales = []
        for layer in range(grid.layers):
            fitted = _load(self._scratch, layer)
            unscaled = torch.ones(grid.slices, grid.slice_rows)
            stacked = torch.stack([fitted.scales.get(bits, unscaled) for bits in FIDELITIES])
            scales.append(dict(zip(grid.matrices, stacked.split(counts, dim=2), strict=True)))
        tuned = tuner.tune(scales, self._outliers(), self._set_codebook_values, steps, seed, lambda: work.add(1))
        for layer in range(grid.layers):
            fitted = _load(self._scratch, layer)
            joined = torch.cat([tuned[layer][name] for name in grid.matrices], dim=2)
            fitted.scales.update((bits, joined[FIDELITIES.index(bits)]) for bits in BITS)
            _save(self._scratch, layer, fitted)

    def _outliers(self) -> list[SparseWeights]:
        outliers = []
        for layer in range(self._grid.layers):
            full, is_outlier = self._scratch.load(f"full.{layer}"), _load(self._scratch, layer).is_outlier
            kept = join_layer(is_outlier, self._architecture.matrices, self._grid)
            outliers += [SparseWeights.of(full[m.name] * kept[m.name]) for m in self._architecture.matrices]
            return_freed_memory()
        return outliers

    @torch.no_grad()
    def _set_codebook_values(self, fidelities: Tensor) -> None:
        """Give every layer the codebook values, not scaled, of its shards at `fidelities` int64 `[N, M]`."""
        grid, matrices = self._grid, self._architecture.matrices
        for layer, chosen in enumerate(fidelities):
            fitted = _load(self._scratch, layer)
            values = torch.empty(fitted.codes.shape)
            for bits in chosen.unique().tolist():
                if bits == FULL:
                    full = split_layer(self._scratch.load(f"full.{layer}"), matrices, grid, range(grid.slices))
                    values[chosen == bits] = (full * ~fitted.is_outlier)[chosen == bits]
                else:
                    values[chosen == bits] = fitted.codebook_values(bits, grid, chosen == bits)
            self._set_weights(layer, join_layer(values, matrices, grid))

    @torch.no_grad()
    def _set_weights(self, layer: int, weights: dict[str, Tensor]) -> None:
        for name, linear in self._linears[layer].items():
            linear.weight.copy_(weights[name])


LAYER_WORK = 25
"""What a layer's codes take, in steps of tuning: roughly, for the progress bar."""


class _Progress:
    def __init__(self, report: Callable[[int, int], None], total: int) -> None:
        self._report, self._total = report, total

    def add(self, work: int) -> None:
        self._report(work, self._total)


def _digest(shard: Tensor) -> bytes:
    return hashlib.blake2b(shard.contiguous().numpy().data, digest_size=16).digest()


def _save(scratch: Scratch, layer: int, fitted: FittedLayer) -> None:
    tensors = {"codes": fitted.codes, "is_outlier": fitted.is_outlier}
    for bits in BITS:
        tensors |= {f"codebooks.{bits}": fitted.codebooks[bits], f"scales.{bits}": fitted.scales[bits]}
    scratch.save(f"fitted.{layer}", tensors)


def _load(scratch: Scratch, layer: int) -> FittedLayer:
    tensors = scratch.load(f"fitted.{layer}")
    return FittedLayer(
        tensors["codes"],
        {bits: tensors[f"codebooks.{bits}"] for bits in BITS},
        {bits: tensors[f"scales.{bits}"] for bits in BITS},
        tensors["is_outlier"],
    )
