"""The marginal allocator against brute force, and its properties on larger grids."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from sti_hf.planning import ImportanceProfile, LayerOrder
from sti_hf.planning.importance import Distortion, Unit
from sti_hf.planning.marginal import marginal
from sti_hf.planning.submodel import Submodel
from sti_hf.shards.layout import FIDELITIES
from tests.planning.problems import make_importance, naive_latency, random_requests


class Interacting(ImportanceProfile):
    """Errors of shards on some sentences that add up or cancel, and a share of their squares."""

    def __init__(self, layers: int, slices: int, seed: int) -> None:
        random = np.random.default_rng(seed)
        scale = np.array([2.0**-bits if bits < 32 else 0.0 for bits in FIDELITIES])
        self.errors = random.normal(size=(layers, slices, 1, 20)) * scale[:, None]

    def effects(self, bits: np.ndarray) -> np.ndarray:
        columns = np.array([FIDELITIES.index(value) for value in bits.ravel()])
        return self.errors.reshape(-1, len(FIDELITIES), 20)[range(bits.size), columns]

    def distortion(self, bits: np.ndarray) -> float:
        effects = self.effects(bits)
        return float((effects.sum(axis=0) ** 2).sum() + 0.3 * (effects**2).sum())

    def units(self, layers: Sequence[int], width: int) -> list[Unit]:
        return [(layer, (i,)) for layer in layers for i in range(width)]

    def track(self, bits: np.ndarray) -> Distortion:
        profile = self

        class Tracked(Distortion):
            def __init__(self) -> None:
                self.bits = bits.copy()

            def fall(self, unit: Unit, fidelity: int) -> float:
                changed = self.bits.copy()
                changed[unit[0], list(unit[1])] = fidelity
                return profile.distortion(self.bits) - profile.distortion(changed)

            def change(self, unit: Unit, fidelity: int) -> None:
                self.bits[unit[0], list(unit[1])] = fidelity

        return Tracked()


def optimum(submodel: Submodel, importance: ImportanceProfile) -> float:
    """The lowest distortion of all fidelities that keep T."""
    request = submodel.request
    everything = itertools.product(request.fidelities, repeat=submodel.depth * submodel.width)
    grids = [np.array(bits).reshape(submodel.depth, submodel.width) for bits in everything]
    for bits in sorted(grids, key=importance.distortion):
        if submodel.is_valid(bits):
            return importance.distortion(bits)
    raise AssertionError("all-lowest must keep T")


@pytest.mark.parametrize("kind", ["additive", "interacting", "layers"])
def test_close_to_the_optimum_on_small_grids(kind: str) -> None:
    """What the plan wins over all-lowest is within 10 % of the most that can be won, and on average within 1 %.

    Greedy and exchanges cannot always find the best of a knapsack where a single shard is a tenth of the budget: 10 %
    is less than one shard. In larger grids a shard is a smaller part, and so is what a greedy search leaves.
    """
    gaps = []
    for request, seed in random_requests(36, [(2, 3), (3, 2)], seed=1):
        layers, slices = request.grid.layers, request.grid.slices
        importance = make_profile_of(kind, layers, slices, seed)
        submodel = Submodel(request, layers, slices)
        bits = marginal(submodel, importance)
        assert naive_latency(request, bits, submodel.layers) <= request.target_latency
        lowest = importance.distortion(submodel.uniform(request.lowest))
        if kind == "layers":
            best = layers_optimum(submodel, importance)
        else:
            best = optimum(submodel, importance)
        if best < lowest:
            gaps.append((importance.distortion(bits) - best) / (lowest - best))
    assert len(gaps) > 20
    assert max(gaps) <= 0.1
    assert np.mean(gaps) <= 0.01


def make_profile_of(kind: str, layers: int, slices: int, seed: int) -> ImportanceProfile:
    if kind == "layers":
        return LayerOrder(layers)
    return Interacting(layers, slices, seed) if kind == "interacting" else make_importance(layers, slices, seed)


def layers_optimum(submodel: Submodel, importance: ImportanceProfile) -> float:
    """The lowest distortion where all slices of a layer have one fidelity."""
    everything = itertools.product(submodel.request.fidelities, repeat=submodel.depth)
    grids = [np.repeat(np.array(bits)[:, None], submodel.width, axis=1) for bits in everything]
    return min(importance.distortion(bits) for bits in grids if submodel.is_valid(bits))


@pytest.mark.parametrize("additive", [True, False])
def test_valid_and_better_than_uniform_on_larger_grids(additive: bool) -> None:
    for request, seed in random_requests(20, [(6, 12), (12, 6), (8, 8)], seed=2):
        layers, slices = request.grid.layers, request.grid.slices
        importance = make_importance(layers, slices, seed)
        importance.additive = additive
        submodel = Submodel(request, layers, slices)
        bits = marginal(submodel, importance)
        assert naive_latency(request, bits, submodel.layers) <= request.target_latency
        uniform = [submodel.uniform(b) for b in request.fidelities if submodel.is_valid(submodel.uniform(b))]
        assert importance.distortion(bits) <= min(map(importance.distortion, uniform)) * (1 + 1e-9)


def test_whole_layers_stay_whole_and_even() -> None:
    for request, _ in random_requests(20, [(6, 12), (2, 3)], seed=4):
        submodel = Submodel(request, request.grid.layers, request.grid.slices)
        bits = marginal(submodel, LayerOrder(request.grid.layers))
        assert (bits == bits[:, :1]).all()


def test_more_time_or_memory_wins_more() -> None:
    """Up to 2 % of all that could be won: a greedy search may spend more on a raise that leaves no room for two."""
    for request, seed in random_requests(12, [(2, 3), (6, 6), (12, 12)], seed=6):
        layers, slices = request.grid.layers, request.grid.slices
        importance = make_importance(layers, slices, seed)
        submodel = Submodel(request, layers, slices)
        start, end = (submodel.latency(submodel.uniform(bits)) for bits in (request.lowest, request.fidelities[-1]))
        everything = importance.distortion(submodel.uniform(request.lowest))
        for series in (
            [replace(request, target_latency=target) for target in np.linspace(start * 1.001, end * 1.01, 6)],
            [replace(request, preload_budget=budget) for budget in (600_000, 1_000_000, 2_000_000)],
        ):
            plans = [marginal(Submodel(one, layers, slices), importance) for one in series]
            distortions = [importance.distortion(bits) for bits in plans]
            assert all(after <= before + 0.02 * everything for before, after in itertools.pairwise(distortions))
            assert distortions[-1] <= distortions[0]
