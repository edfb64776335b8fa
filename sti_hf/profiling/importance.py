"""Measures what the shards of a store are worth for a task, on one process or several.

    accelerate launch --multi_gpu --num_processes 2 -m sti_hf.cli profile-importance STORE --task sst2

is `sti profile-importance` on two. (Without `--multi_gpu` accelerate starts a single one where there is no GPU.)
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from transformers.utils import logging

from sti_hf.errors import ConfigurationError
from sti_hf.model.layer_runner import LayerRunner
from sti_hf.planning.exhaustive import ExhaustiveImportance
from sti_hf.profiling.evaluation import Scored
from sti_hf.profiling.exhaustive import choose_base, raised_scores, uniform_score
from sti_hf.profiling.plan_weights import PlanWeights
from sti_hf.profiling.shared_work import Item, SharedWork
from sti_hf.profiling.submodels import coarse_grid, submodel_scores
from sti_hf.shards.layout import PLANES


def measure_exhaustive(
    runner: LayerRunner, weights: PlanWeights, evaluation: Scored, work: SharedWork, base_bits: int | None = None
) -> tuple[ExhaustiveImportance, dict[str, Any]]:
    """The paper's importance (STI, section 4) of all shards, and the facts of it.

    Args:
        runner: of the store's model, in float32.
        weights: of the same model. They are overwritten.
        evaluation: the task's examples, with labels.
        work: what splits the shards over processes, and takes up those of an interrupted run.
        base_bits: fidelity of all shards but one; None: the lowest at which the metric still moves (`choose_base`).
    """
    if base_bits is None:
        base_bits = choose_base(runner, weights, evaluation)
    check_base(base_bits)
    grid, fidelities = weights.store.grid, weights.store.fidelities
    full, base = (uniform_score(runner, weights, evaluation, bits) for bits in (fidelities[-1], base_bits))
    # Shards are named by the checkpoint's slices, so that an interrupted run is taken up in a reordered store too.
    order = weights.store.stack.slice_order
    shards = [(layer, index) for layer in range(grid.layers) for index in range(grid.slices)]

    def compute(some: Sequence[Item]) -> Iterator[tuple[Item, tuple[float, float]]]:
        stored = [(layer, order[layer].index(index)) for layer, index in some]
        scores = raised_scores(runner, weights, evaluation, base_bits, stored, work.folder)
        return (((layer, order[layer][k]), (score.value, score.loss)) for (layer, k), score in scores)

    with _progress(work, len(shards), "Profiling shards") as bar:
        measured = work.run(f"shards-{base_bits}", shards, compute, bar.update)
    table = np.array([[measured[layer, index] for index in order[layer]] for layer in range(grid.layers)])
    profile = ExhaustiveImportance(table[:, :, 0], table[:, :, 1], base_bits, base.value, base.loss)
    return profile, {
        "base_bits": base_bits,
        "raised_to": fidelities[-1],
        "base_score": base.value,
        "base_loss": base.loss,
        "full_score": full.value,
        "chance": evaluation.chance,
        "ties": "by loss",
    }


def measure_submodels(
    runner: LayerRunner, weights: PlanWeights, evaluation: Scored, work: SharedWork, order: np.ndarray
) -> list[dict[str, Any]]:
    """The task's metric of n x m submodels on a coarse grid, as `submodel_accuracy` reads it, and beside it what the
    evaluation has `recorded`.

    Measured for the store as it is, and, where slices are droppable, for them in `order` int `[N, M]` (of those
    stored), as `sti reorder` would have them.
    """
    grid = weights.store.grid
    submodels = coarse_grid(grid.layers, grid.slices, grid.droppable)
    stored = np.array(weights.store.stack.slice_order)
    measured = []
    as_stored = np.tile(np.arange(grid.slices), (grid.layers, 1))
    for slices in np.unique(np.stack((as_stored, order if grid.droppable else as_stored)), axis=0):
        slice_order = np.take_along_axis(stored, slices, axis=1).tolist()

        def compute(some: Sequence[Item], slices: np.ndarray = slices) -> Iterator[tuple[Item, list[float]]]:
            scores = submodel_scores(runner, weights, evaluation, some, slices, work.folder)
            names = evaluation.recorded
            return ((submodel, [score.value, *(score.metrics[name] for name in names)]) for submodel, score in scores)

        kind = f"submodel-scores-{zlib.crc32(str(slice_order).encode()):08x}"
        with _progress(work, len(submodels), "Measuring submodels") as bar:
            scores = work.run(kind, submodels, compute, bar.update)
        tables = [
            [[*submodel, scores[submodel][column]] for submodel in submodels]
            for column in range(1 + len(evaluation.recorded))
        ]
        named = dict(zip(("accuracy", *evaluation.recorded), tables))
        measured.append({"slice_order": slice_order, "bits": PLANES, **named})
    return measured


def check_base(bits: int) -> None:
    """Raises `ValueError` unless that is a fidelity that shards can be raised from."""
    if not 2 <= bits < PLANES:
        raise ConfigurationError(f"The base fidelity must be 2 to {PLANES - 1} bits, not {bits!r}.")


def _progress(work: SharedWork, total: int, what: str) -> Any:
    return logging.tqdm(total=total, desc=what, disable=not work.state.is_main_process)
