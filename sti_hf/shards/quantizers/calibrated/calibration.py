"""One run of calibration: codes layer after layer, then the scales of the whole model."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from sti_hf.errors import SourceError
from sti_hf.model.architecture import Architecture
from sti_hf.model.grid import Grid
from sti_hf.model.layer_runner import Inputs
from sti_hf.process_memory import return_freed_memory
from sti_hf.shards.layout import FIDELITIES
from sti_hf.shards.quantizers.base import Quantizer
from sti_hf.shards.quantizers.calibrated.calibrated_shards import CalibratedShards
from sti_hf.shards.quantizers.calibrated.fisher_moments import save_fisher_moments
from sti_hf.shards.quantizers.calibrated.fitted_files import load_fitted, save_fitted
from sti_hf.shards.quantizers.calibrated.forward_passes import CalibrationPass
from sti_hf.shards.quantizers.calibrated.frozen_linear import fast_dtype, frozen_linears
from sti_hf.shards.quantizers.calibrated.language_head import LanguageHead
from sti_hf.shards.quantizers.calibrated.nested_fit import BITS, LANGUAGE, MOMENT_BITS, fit_layer
from sti_hf.shards.quantizers.calibrated.objectives import HiddenStatesObjective, NextTokenObjective, Objective
from sti_hf.shards.quantizers.calibrated.scale_tuning import ENCODER_TUNING, LANGUAGE_TUNING, ScaleTuner
from sti_hf.shards.quantizers.calibrated.scratch import Scratch
from sti_hf.shards.quantizers.calibrated.vocabulary import VocabularyQuantizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Calibrated:
    """What a run makes: fitted layers in `scratch`, the place of each slice of a layer by its digest, and the
    quantizer of a language model's vocabulary."""

    scratch: Scratch
    slice_indices: Sequence[dict[bytes, int]]
    vocabulary: Quantizer | None


class Calibration:
    """One run of `calibrate`."""

    def __init__(
        self, model: PreTrainedModel, architecture: Architecture, grid: Grid, batches: Sequence[Inputs]
    ) -> None:
        self._model, self._architecture, self._grid, self._batches = model, architecture, grid, batches
        self._linears = architecture.linears(model)
        if any(linear.weight.dtype != torch.float32 for layer in self._linears for linear in layer.values()):
            raise SourceError("Calibration needs the model in float32; load it with dtype=torch.float32.")
        self._scratch = Scratch()
        self._shards = CalibratedShards(self._scratch, grid, architecture.matrices, self._linears)
        self._head = LanguageHead.of(model, architecture)
        self._tuning = ENCODER_TUNING if self._head is None else LANGUAGE_TUNING

    def run(self, tuning_steps: int | None, seed: int, progress: Callable[[int, int], None]) -> Calibrated:
        was_training = self._model.training
        self._model.eval()
        steps = self._tuning.passes * len(self._batches) if tuning_steps is None else tuning_steps
        moments_work = 0 if self._head is None else len(self._batches)
        work = _Progress(progress, self._grid.layers * LAYER_WORK + moments_work + steps)
        vocabulary = None
        try:
            slice_indices = self._shards.keep()
            with self._frozen(range(self._grid.layers)):
                objective = self._objective()
                if self._head is not None:
                    self._save_fisher_moments(self._head, seed, work)
            if isinstance(objective, NextTokenObjective):
                vocabulary = VocabularyQuantizer(objective.moments)
                self._fit_codes_of_language_model(work)
            else:
                self._fit_codes(work)
            tuner = ScaleTuner(self._model, self._architecture, objective, self._tuning)
            with self._frozen(range(self._grid.layers)):
                self._tune_scales(tuner, steps, seed, work)
        finally:
            self._model.train(was_training)
            return_freed_memory()
        return Calibrated(self._scratch, slice_indices, vocabulary)

    def _objective(self) -> Objective:
        if self._head is not None:
            return NextTokenObjective(self._head, self._batches, self._scratch)
        return HiddenStatesObjective(self._model, self._batches, self._scratch)

    def _save_fisher_moments(self, head: LanguageHead, seed: int, work: _Progress) -> None:
        save_fisher_moments(
            self._model,
            self._architecture,
            self._grid,
            head,
            self._batches,
            self._scratch,
            seed,
            progress=lambda: work.add(1),
        )

    @torch.no_grad()
    def _fit_codes_of_language_model(self, work: _Progress) -> None:
        for layer in range(self._grid.layers):
            moments = dict.fromkeys(MOMENT_BITS, self._scratch.load(f"moments.{layer}"))
            fitted = fit_layer(self._shards.full(layer), self._grid, self._architecture.matrices, moments, LANGUAGE)
            save_fitted(self._scratch, layer, fitted)
            return_freed_memory()
            work.add(LAYER_WORK)

    def _frozen(self, layers: Iterable[int]) -> AbstractContextManager[None]:
        """`frozen_linears` of these layers: memory is that of the copies."""
        return frozen_linears([linear for layer in layers for linear in self._linears[layer].values()], fast_dtype())

    @torch.no_grad()
    def _fit_codes(self, work: _Progress) -> None:
        grid = self._grid
        calibration_pass = CalibrationPass(
            self._model, self._architecture, grid, self._batches, MOMENT_BITS, self._scratch
        )
        for layer in range(grid.layers):
            with self._frozen([layer]):
                moments = {bits: calibration_pass.input_moments(layer, bits) for bits in MOMENT_BITS}
                fitted = fit_layer(self._shards.full(layer), grid, self._architecture.matrices, moments)
                for bits in MOMENT_BITS:
                    self._shards.set_fidelity(layer, fitted, bits)
                    calibration_pass.advance(layer, bits)
            save_fitted(self._scratch, layer, fitted)
            return_freed_memory()
            work.add(LAYER_WORK)

    def _tune_scales(self, tuner: ScaleTuner, steps: int, seed: int, work: _Progress) -> None:
        grid = self._grid
        counts = [rows for _, rows in grid.rows]
        scales = []
        for layer in range(grid.layers):
            fitted = load_fitted(self._scratch, layer)
            unscaled = torch.ones(grid.slices, grid.slice_rows)
            stacked = torch.stack([fitted.scales.get(bits, unscaled) for bits in FIDELITIES])
            scales.append(dict(zip(grid.matrices, stacked.split(counts, dim=2), strict=True)))
        set_values = self._shards.set_codebook_values
        outliers = self._shards.outliers()
        tuned = tuner.tune(scales, outliers, len(self._batches), set_values, steps, seed, lambda: work.add(1))
        for layer in range(grid.layers):
            fitted = load_fitted(self._scratch, layer)
            joined = torch.cat([tuned[layer][name] for name in grid.matrices], dim=2)
            fitted.scales.update((bits, joined[FIDELITIES.index(bits)]) for bits in BITS)
            save_fitted(self._scratch, layer, fitted)


LAYER_WORK = 25
"""What a layer's codes take, in steps of tuning: roughly, for the progress bar."""


class _Progress:
    def __init__(self, report: Callable[[int, int], None], total: int) -> None:
        self._report, self._total = report, total

    def add(self, work: int) -> None:
        self._report(work, self._total)
