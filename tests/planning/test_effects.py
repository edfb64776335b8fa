"""Effects: distortions with interactions, and what allocators make of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sti_hf.planning import make_plan
from sti_hf.planning.checked import CheckedPlans
from sti_hf.planning.effects import LEVELS, EffectsImportance
from sti_hf.planning.marginal import marginal
from sti_hf.planning.submodel import Submodel
from sti_hf.planning.two_pass import two_pass
from sti_hf.shards.layout import FIDELITIES
from tests.planning.problems import make_layouts, make_profile, make_request, naive_latency, random_requests
from tests.planning.test_marginal import optimum

LAYERS, SLICES, OUTPUTS = 3, 4, 16


def make_effects(layers: int, slices: int, seed: int = 0, outputs: int = OUTPUTS) -> np.ndarray:
    """Effects about 2^-bits, of which shards have a part in common."""
    random = np.random.default_rng(seed)
    errors = random.normal(size=(layers, slices, 1, outputs)) + 0.5 * random.normal(size=outputs)
    worths = np.exp(0.5 * random.normal(size=(layers, slices, 1, 1)))
    noise = 1 + 0.2 * random.normal(size=(layers, slices, len(LEVELS), outputs))
    return worths * errors * noise * 2.0 ** -np.array(LEVELS)[:, None]


def make_checked(layers: int, slices: int, seed: int = 0) -> CheckedPlans:
    """Uniform plans, mixed ones, and distortions that do not follow the effects."""
    random = np.random.default_rng(seed)
    uniform = [np.full((layers, slices), bits) for bits in LEVELS]
    raised = [random.random((layers, slices)) < share for share in np.linspace(0.05, 0.8, 8)]
    mixed = [np.where(shards, high, 2) for shards in raised for high in (3, 4)]
    bits = np.stack(uniform + mixed)
    return CheckedPlans(bits, 4.0 ** -bits.mean(axis=(1, 2)) * np.exp(0.5 * random.normal(size=len(bits))))


def by_definition(effects: np.ndarray, share: float, bits: np.ndarray) -> float:
    """The distortion, shard by shard and output by output."""
    total, alone = np.zeros(effects.shape[3]), 0.0
    for (layer, i), fidelity in np.ndenumerate(bits):
        if fidelity in LEVELS:
            effect = effects[layer, i, LEVELS.index(fidelity)]
            total += effect
            alone += (effect**2).mean()
    return float((total**2).mean() + share * alone)


@given(bits=st.lists(st.sampled_from([0, *FIDELITIES]), min_size=LAYERS * SLICES, max_size=LAYERS * SLICES))
@settings(deadline=None)
def test_distortion_is_the_square_of_the_sum_and_a_share_of_the_squares(bits: list[int]) -> None:
    effects = make_effects(LAYERS, SLICES)
    matrix = np.array(bits).reshape(LAYERS, SLICES)
    expected = by_definition(effects, 0.3, matrix)
    assert EffectsImportance(effects, share=0.3).distortion(matrix) == pytest.approx(expected, rel=1e-4, abs=1e-9)


def test_full_fidelity_has_no_distortion() -> None:
    assert EffectsImportance(make_effects(LAYERS, SLICES)).distortion(np.full((LAYERS, SLICES), 32)) == 0


UNITS = st.tuples(st.integers(0, LAYERS - 1), st.sets(st.integers(0, SLICES - 1), min_size=1))


@given(steps=st.lists(st.tuples(UNITS, st.sampled_from(FIDELITIES)), max_size=12))
@settings(deadline=None)
def test_falls_are_differences_of_distortion(steps: list[tuple[tuple[int, set[int]], int]]) -> None:
    profile = EffectsImportance(make_effects(LAYERS, SLICES))
    bits = np.full((LAYERS, SLICES), 2)
    largest = profile.distortion(bits)
    tracked = profile.track(bits)
    for (layer, slices), fidelity in steps:
        unit = layer, tuple(sorted(slices))
        before = profile.distortion(bits)
        fall = tracked.fall(unit, fidelity)
        tracked.change(unit, fidelity)
        bits[layer, list(unit[1])] = fidelity
        assert before - profile.distortion(bits) == pytest.approx(fall, abs=1e-5 * largest)


def test_units_and_order_put_the_largest_effects_first() -> None:
    effects = np.zeros((2, 3, len(LEVELS), OUTPUTS))
    effects[:, :, 0, 0] = [[1, -5, 9], [2, 7, -3]]
    profile = EffectsImportance(effects)
    assert profile.units([0, 1], 2) == [(1, (1,)), (0, (1,)), (1, (0,)), (0, (0,))]
    assert profile.order().tolist() == [[2, 1, 0], [1, 2, 0]]


@given(seed=st.integers(0, 100))
@settings(deadline=None, max_examples=20)
def test_reordered_is_the_same_profile_of_other_slices(seed: int) -> None:
    random = np.random.default_rng(seed)
    profile = EffectsImportance(make_effects(LAYERS, SLICES, seed), make_checked(LAYERS, SLICES, seed))
    order = np.stack([random.permutation(SLICES) for _ in range(LAYERS)])
    bits = random.choice(FIDELITIES, size=(LAYERS, SLICES))
    reordered = profile.reordered(order)
    there = np.take_along_axis(bits, order, axis=1)
    assert reordered.distortion(there) == pytest.approx(profile.distortion(bits), rel=1e-4)
    assert (reordered.checked.bits[3:5] == [np.take_along_axis(b, order, 1) for b in profile.checked.bits[3:5]]).all()
    assert (np.take_along_axis(order, reordered.order(), axis=1) == profile.order()).all()


@pytest.mark.parametrize("checked", [None, make_checked(LAYERS, SLICES)], ids=["unchecked", "checked"])
@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e8])
def test_arrays_give_the_profile_back(checked: CheckedPlans | None, scale: float) -> None:
    """Float16 keeps effects of any size to 3 digits."""
    profile = EffectsImportance(make_effects(LAYERS, SLICES) * scale, checked, share=0.7)
    arrays = profile.arrays()
    assert sum(array.nbytes for array in arrays.values()) < 2 * profile.effects.size + 1000
    back = EffectsImportance.from_arrays(arrays)
    bits = np.random.default_rng(0).choice(FIDELITIES, size=(LAYERS, SLICES))
    assert back.distortion(bits) == pytest.approx(profile.distortion(bits), rel=5e-3)
    assert back.share == 0.7
    if checked is None:
        assert back.checked is None
    else:
        assert (back.checked.bits == checked.bits).all()
        assert (back.checked.distortion == checked.distortion).all()


def test_close_to_the_optimum_on_small_grids() -> None:
    """As in test_marginal: within 10 % of what can be won, and on average within 1 %."""
    gaps = []
    for request, seed in random_requests(14, [(2, 3), (3, 2)], seed=11):
        layers, slices = request.grid.layers, request.grid.slices
        importance = EffectsImportance(make_effects(layers, slices, seed))
        submodel = Submodel(request, layers, slices)
        bits = marginal(submodel, importance)
        assert naive_latency(request, bits, submodel.layers) <= request.target_latency
        lowest = importance.distortion(submodel.uniform(request.lowest))
        best = optimum(submodel, importance)
        if best < lowest:
            gaps.append((importance.distortion(bits) - best) / (lowest - best))
    assert len(gaps) > 6
    assert max(gaps) <= 0.1
    assert np.mean(gaps) <= 0.01


@pytest.mark.parametrize("allocator", [marginal, two_pass])
def test_no_plan_starts_from_one_that_a_cheaper_one_beats(allocator) -> None:
    """The plan contains a checked plan that no other checked plan that keeps T beats, cheaper or not."""
    mixed = 0
    for request, seed in random_requests(24, [(3, 4), (6, 6)], seed=12):
        layers, slices = request.grid.layers, request.grid.slices
        checked = make_checked(layers, slices, seed)
        submodel = Submodel(request, layers, slices)
        bits = allocator(submodel, EffectsImportance(make_effects(layers, slices, seed), checked))
        assert naive_latency(request, bits, submodel.layers) <= request.target_latency
        usable = [
            (distortion, plan)
            for distortion, plan in zip(checked.distortion, checked.bits.astype(int))
            if set(plan.ravel()) <= set(request.fidelities)
            and naive_latency(request, plan, submodel.layers) <= request.target_latency
        ]
        if usable:
            best = min(usable, key=lambda pair: pair[0])[1]
            assert (bits >= best).all()
            mixed += len(set(best.ravel())) > 1
    assert mixed > 3


def test_checked_plans_say_nothing_of_smaller_submodels() -> None:
    layouts = make_layouts(LAYERS, SLICES)
    profile = EffectsImportance(make_effects(LAYERS, SLICES), make_checked(LAYERS, SLICES))
    request = make_request(layouts, make_profile(), fidelities=(2, 3, 4, 5, 6))
    assert profile.checked.best(Submodel(request, LAYERS, SLICES)) is not None
    assert profile.checked.best(Submodel(request, LAYERS - 1, SLICES)) is None
    assert profile.checked.best(Submodel(request, LAYERS, SLICES - 1)) is None


@pytest.mark.parametrize("allocator", ["marginal", "two_pass"])
def test_plans_of_every_target_are_feasible_and_get_better(allocator: str) -> None:
    layouts, device = make_layouts(6, 4), make_profile()
    profile = EffectsImportance(make_effects(6, 4), make_checked(6, 4))
    submodel = Submodel(make_request(layouts, device), 6, 4)
    slow = submodel.latency(submodel.uniform(6))
    lowest = submodel.latency(submodel.uniform(2))
    plans = [
        make_plan(make_request(layouts, device, target_latency=target, allocator=allocator, importance=profile))
        for target in np.linspace(lowest * 1.01, slow * 1.01, 5)
    ]
    assert all(plan.feasible for plan in plans)
    assert plans[-1].distortion < 0.1 * plans[0].distortion


@pytest.mark.parametrize(
    ("effects", "checked", "message"),
    [
        (np.zeros((2, 3, 4, 5)), None, "shape"),
        (np.zeros((2, 3, 5, 0)), None, "shape"),
        (np.full((2, 3, 5, 4), np.nan), None, "finite"),
        (np.zeros((2, 3, 5, 4)), make_checked(2, 4), "another grid"),
    ],
)
def test_profiles_that_make_no_sense(effects: np.ndarray, checked: CheckedPlans | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        EffectsImportance(effects, checked)


@pytest.mark.parametrize(
    ("bits", "distortion", "message"),
    [
        (np.full((1, 2, 3), 2), [1.0, 2.0], "a distortion each"),
        (np.full((1, 2, 3), 0), [1.0], "every shard"),
        (np.full((1, 2, 3), 2), [np.nan], "finite"),
    ],
)
def test_checked_plans_that_make_no_sense(bits: np.ndarray, distortion: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CheckedPlans(bits, np.array(distortion))
