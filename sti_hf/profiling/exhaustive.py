"""Measures the paper's importance (STI, section 4): the task's metric with one shard raised and all others low.

Not naively: raising a shard of layer l changes nothing below l, so the inputs of layer l are kept and only layers l
and above are executed: of the naive loop's `N * N * M` executions about half.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from sti_hf.errors import SourceError
from sti_hf.model.layer_runner import HiddenStates, LayerRunner
from sti_hf.profiling.evaluation import Scored
from sti_hf.profiling.metrics import Score
from sti_hf.profiling.plan_weights import PlanWeights
from sti_hf.shards.layout import PLANES

Shard = tuple[int, int]
"""Layer and slice, as stored."""

MOVES = 0.5
"""The metric moves at a fidelity if the model keeps at least this share of what it is better than chance in full."""


def uniform_score(runner: LayerRunner, weights: PlanWeights, evaluation: Scored, bits: int) -> Score:
    """The score with all shards at one fidelity."""
    weights.set(np.full((weights.store.grid.layers, weights.store.grid.slices), bits))
    return evaluation.score(lambda index: runner.run(evaluation.batches[index].inputs))


def choose_base(runner: LayerRunner, weights: PlanWeights, evaluation: Scored) -> int:
    """The lowest fidelity at which the metric still moves.

    That is the lowest k at which the model with all shards at k bits scores at least half-way from chance (always the
    same class; 0 for correlations) to the model in full. Below that raising a shard tells nothing. Raises `ValueError`
    where the model in full is no better than chance, or no fidelity below 6 bits will do.
    """
    full = uniform_score(runner, weights, evaluation, weights.store.fidelities[-1]).value
    chance = evaluation.chance
    name = f"{evaluation.leading} on {evaluation.name}"
    if full <= chance:
        raise SourceError(
            f"The model's {name} is {full:.3f}, which is no better than chance ({chance:.3f}); take a model that was "
            "fine-tuned for the task, or a base fidelity of your own."
        )
    for bits in range(2, PLANES):
        if uniform_score(runner, weights, evaluation, bits).value >= chance + MOVES * (full - chance):
            return bits
    raise SourceError(f"The model's {name} is at chance at every fidelity below {PLANES} bits; shard it another way.")


def raised_scores(
    runner: LayerRunner,
    weights: PlanWeights,
    evaluation: Scored,
    base_bits: int,
    shards: Sequence[Shard],
    scratch: Path | None = None,
) -> Iterator[tuple[Shard, Score]]:
    """The score with each of `shards` (in order of their layers) at the store's highest fidelity, others at the base.

    `scratch` is a folder for hidden states where they are too many for memory.
    """
    grid, top = weights.store.grid, weights.store.fidelities[-1]
    bits = np.full((grid.layers, grid.slices), base_bits)
    weights.set(bits)
    states = HiddenStates(runner, [batch.inputs for batch in evaluation.batches], scratch)
    for shard in shards:
        if shard[0] != states.layer:
            weights.set(bits)
            states.advance_to(shard[0])
        raised = bits.copy()
        raised[shard] = top
        weights.set(raised)
        yield shard, evaluation.score(states.finish)
