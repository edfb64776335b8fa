"""Plans that are run on calibration texts, so that one that a cheaper one beats is never used."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np

from sti_hf.planning.checked import CheckedPlans
from sti_hf.planning.importance import Distortion, ImportanceProfile, LayerOrder, Unit
from sti_hf.profiling.outputs import Batch, OutputMeasure, Projected
from sti_hf.profiling.plan_weights import PlanWeights
from sti_hf.shards.layout import FULL, PLANES

if TYPE_CHECKING:
    from transformers import PreTrainedModel

AVERAGES = (2.125, 2.25, 2.375, 2.5, 2.75, 3.0, 3.5, 4.0, 5.0)
"""Bits on average at which plans are checked: close together where most is to be won."""

AT_ONCE = 128
"""Of this many units one is raised before what all raises are worth is asked anew."""


def plans_to_check(profiles: Sequence[ImportanceProfile], layers: int, slices: int, lowest: int) -> np.ndarray:
    """What may be the best at some price: uint8 `[K, N, M]`, no plan twice.

    All uniform fidelities, and what each profile takes for the best at `AVERAGES`, as whole layers from the first.
    """
    found = [np.full((layers, slices), bits) for bits in range(lowest, PLANES + 1)]
    averages = [average for average in AVERAGES if average > lowest]
    for profile in (LayerOrder(layers), *profiles):
        found += greedy_path(profile, np.full((layers, slices), lowest), averages)
    return np.unique(np.stack(found).astype(np.uint8), axis=0)


def check_plans(
    model: PreTrainedModel,
    weights: PlanWeights,
    batches: Sequence[Batch],
    plans: np.ndarray,
    progress: Callable[[int], object] = lambda plans: None,
    outputs: OutputMeasure | None = None,
) -> CheckedPlans:
    """Runs plans uint8 `[K, N, M]` on some texts. `progress` is called with 1 after each; `outputs` measures how far
    they are from the full model's, None: `Projected`."""
    weights.set(np.full(plans.shape[1:], FULL))
    moved = (outputs or Projected()).since(model, batches)
    distortions = []
    for bits in plans.astype(np.int64):
        weights.set(bits)
        distortions.append(moved())
        progress(1)
    return CheckedPlans(plans, np.array(distortions))


def greedy_path(profile: ImportanceProfile, lowest: np.ndarray, averages: Sequence[float]) -> list[np.ndarray]:
    """Bits `[N, M]` of at most these ascending `averages`, by what raises are worth a bit; none is raised above 6.

    Every matrix has at least the fidelities of those before it, from `lowest` on.
    """
    units = profile.units(range(lowest.shape[0]), lowest.shape[1])
    at_once = -(-len(units) // AT_ONCE)
    bits = lowest.astype(np.int64)
    tracked = profile.track(bits)
    found = []
    for average in averages:
        while raises := _best_raises(tracked, units, bits, int(average * bits.size - bits.sum()))[:at_once]:
            for _, (layer, slices), fidelity in raises:
                tracked.change((layer, slices), fidelity)
                bits[layer, list(slices)] = fidelity
        found.append(bits.copy())
    return found


def _best_raises(
    tracked: Distortion, units: Sequence[Unit], bits: np.ndarray, left: int
) -> list[tuple[float, Unit, int]]:
    """Of every unit the raise that wins most a bit (how much, the unit, its new bits), best first.

    Of those that cost at most `left` bits; as many of the best are returned as do so together.
    """
    raises = []
    for unit in units:
        layer, slices = unit
        now = int(bits[layer, slices[0]])
        highest = min(PLANES, now + left // len(slices))
        falls = [
            (tracked.fall(unit, higher) / (higher - now) / len(slices), higher)
            for higher in range(now + 1, highest + 1)
        ]
        rate, fidelity = max(falls, default=(0.0, now))
        if rate > 0:
            raises.append((rate, unit, fidelity))
    raises.sort(key=lambda item: -item[0])
    costs = np.cumsum([len(unit[1]) * (fidelity - bits[unit[0], unit[1][0]]) for _, unit, fidelity in raises])
    return raises[: int((costs <= left).sum())]
