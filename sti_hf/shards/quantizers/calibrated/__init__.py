"""The calibrated quantizer: nested codes that follow the model's own activations on a few hundred texts, no labels.

Layer after layer, codes are chosen with error feedback for all fidelities at once (`error_feedback`), codebooks and
row scales are fitted to the outputs (`least_squares`), on inputs as the quantized layers before give them. The few
weights that carry most of an output stay exact (`outliers`). At the end the row scales of the lowest fidelities are
tuned against the full model (`scale_tuning`).
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sti_hf.errors import SourceError
from sti_hf.model import get_architecture
from sti_hf.model.architecture import Architecture
from sti_hf.model.fused import in_parts
from sti_hf.model.grid import Grid
from sti_hf.model.layer_runner import Inputs
from sti_hf.process_memory import page_out, return_freed_memory
from sti_hf.shards.layout import FIDELITIES, FULL
from sti_hf.shards.partition import join_layer, split_layer, write_slice
from sti_hf.shards.quantizers.base import QuantizedLayer, Quantizer, collect_outliers
from sti_hf.shards.quantizers.calibrated.forward_passes import CalibrationPass
from sti_hf.shards.quantizers.calibrated.frozen_linear import fast_dtype, frozen_linears
from sti_hf.shards.quantizers.calibrated.nested_fit import BITS, MOMENT_BITS, FittedLayer, fit_layer
from sti_hf.shards.quantizers.calibrated.outliers import SparseWeights
from sti_hf.shards.quantizers.calibrated.scale_tuning import ScaleTuner
from sti_hf.shards.quantizers.calibrated.scratch import Scratch
from sti_hf.shards.quantizers.lloyd import LloydQuantizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TUNING_PASSES = 10
"""How often the row scales are tuned on every batch."""


class CalibratedQuantizer:
    """A `Quantizer` for the shards of the one model that it was calibrated on. Made by `calibrate`."""

    def __init__(self, scratch: Scratch, slice_indices: Sequence[dict[bytes, int]]) -> None:
        self._scratch = scratch
        self._slice_indices = slice_indices

    @property
    def vocabulary(self) -> Quantizer:
        """See `Quantizer`."""
        return LloydQuantizer()

    def quantize_layer(self, layer: int, shards: Tensor, grid: Grid) -> QuantizedLayer:
        """See `Quantizer`. Slices may come in any order: each is known by its weights.

        Raises `ValueError` for a shard that is not of the calibrated model.
        """
        known = self._slice_indices[layer] if layer < len(self._slice_indices) else {}
        digests = [_digest(shard) for shard in shards]
        if not all(digest in known for digest in digests):
            raise SourceError(f"Layer {layer} is not of the model that was calibrated; calibrate on this model.")
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
        UnsupportedModelError: see `get_architecture`.
    """
    if not batches:
        raise SourceError("There is no calibration text; give at least one batch, better a few hundred sentences.")
    architecture = get_architecture(model.config)
    with in_parts(model, architecture):
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
            raise SourceError("Calibration needs the model in float32; load it with dtype=torch.float32.")
        self._scratch = Scratch()

    def run(self, tuning_steps: int, seed: int, progress: Callable[[int, int], None]) -> CalibratedQuantizer:
        was_training = self._model.training
        self._model.eval()
        work = _Progress(progress, self._grid.layers * LAYER_WORK + tuning_steps)
        try:
            slice_indices = self._keep_shards()
            with self._frozen(range(self._grid.layers)):
                tuner = ScaleTuner(self._model, self._architecture, self._batches, self._scratch)
            self._fit_codes(work)
            with self._frozen(range(self._grid.layers)):
                self._tune_scales(tuner, tuning_steps, seed, work)
        finally:
            self._model.train(was_training)
            return_freed_memory()
        return CalibratedQuantizer(self._scratch, slice_indices)

    def _frozen(self, layers: Iterable[int]) -> AbstractContextManager[None]:
        """`frozen_linears` of these layers: memory is that of the copies."""
        return frozen_linears([linear for layer in layers for linear in self._linears[layer].values()], fast_dtype())

    def _keep_shards(self) -> list[dict[bytes, int]]:
        """Writes the full shards of every layer into the scratch folder; gives the index of each by its digest."""
        slice_indices = []
        for layer, linears in enumerate(self._linears):
            weights = {name: linear.weight.detach() for name, linear in linears.items()}
            shards = split_layer(weights, self._architecture.matrices, self._grid, range(self._grid.slices))
            for weight in weights.values():
                page_out(weight)
            slice_indices.append({_digest(shard): index for index, shard in enumerate(shards)})
            self._scratch.save(f"full.{layer}", {"shards": shards})
            del shards
            return_freed_memory()
        return slice_indices

    @torch.no_grad()
    def _fit_codes(self, work: _Progress) -> None:
        grid = self._grid
        calibration_pass = CalibrationPass(
            self._model, self._architecture, grid, self._batches, MOMENT_BITS, self._scratch
        )
        for layer in range(grid.layers):
            with self._frozen([layer]):
                moments = {bits: calibration_pass.input_moments(layer, bits) for bits in MOMENT_BITS}
                fitted = fit_layer(self._full_shards(layer), grid, self._architecture.matrices, moments)
                for bits in MOMENT_BITS:
                    self._set_fidelity(layer, fitted, bits)
                    calibration_pass.advance(layer, bits)
            _save(self._scratch, layer, fitted)
            return_freed_memory()
            work.add(LAYER_WORK)

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
            kept = self._full_shards(layer) * _load(self._scratch, layer).is_outlier
            weights = join_layer(kept, self._architecture.matrices, self._grid)
            outliers += [SparseWeights.of(weights[matrix.name]) for matrix in self._architecture.matrices]
            del kept, weights
            return_freed_memory()
        return outliers

    def _set_fidelity(self, layer: int, fitted: FittedLayer, bits: int) -> None:
        """Give a layer the values of all its shards at fidelity `bits`."""
        for index, shard in enumerate(self._full_shards(layer)):
            values = fitted.codebook_values(index, bits, self._grid) * fitted.scales[bits][index][:, None]
            values += shard * fitted.is_outlier[index]
            self._set_slice(layer, index, values)

    @torch.no_grad()
    def _set_codebook_values(self, fidelities: Tensor) -> None:
        """Give every layer the codebook values, not scaled, of its shards at `fidelities` int64 `[N, M]`."""
        for layer, chosen in enumerate(fidelities.tolist()):
            fitted, shards = _load(self._scratch, layer), self._full_shards(layer)
            for index, bits in enumerate(chosen):
                if bits == FULL:
                    values = shards[index] * ~fitted.is_outlier[index]
                else:
                    values = fitted.codebook_values(index, bits, self._grid)
                self._set_slice(layer, index, values)

    def _full_shards(self, layer: int) -> Tensor:
        """Float32 `[M, slice_rows, row_length]`, mapped: in memory where they are read."""
        return self._scratch.load(f"full.{layer}")["shards"]

    def _set_slice(self, layer: int, index: int, values: Tensor) -> None:
        weights = {name: linear.weight for name, linear in self._linears[layer].items()}
        write_slice(weights, index, values, self._architecture.matrices, self._grid)


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
