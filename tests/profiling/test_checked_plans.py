"""Plans that are proposed, and plans that are run."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification

from sti_hf.planning import ImportanceProfile, LayerOrder
from sti_hf.planning.effects import EffectsImportance
from sti_hf.profiling.checked_plans import AVERAGES, check_plans, greedy_path, plans_to_check
from sti_hf.profiling.plan_weights import PlanWeights
from tests.models import HEADS, LAYERS, tiny_inputs, tiny_model
from tests.planning.problems import make_importance
from tests.planning.test_effects import make_effects
from tests.runtime.sessions import logits_of, plan_of, random_bits, running, store_of


@pytest.mark.parametrize("kind", ["effects", "additive", "layers"])
def test_paths_rise_and_keep_to_their_averages(kind: str) -> None:
    profile: ImportanceProfile = {
        "effects": EffectsImportance(make_effects(4, 6)),
        "additive": make_importance(4, 6),
        "layers": LayerOrder(4),
    }[kind]
    lowest = np.full((4, 6), 2)
    path = greedy_path(profile, lowest, AVERAGES)
    assert len(path) == len(AVERAGES)
    for before, bits, average in zip([lowest, *path], path, AVERAGES):
        assert (bits >= before).all()
        assert bits.max() <= 6
        assert average - (0.25 if kind == "layers" else 1 / 24) < bits.mean() <= average
        assert profile.distortion(bits) <= profile.distortion(before)
    if kind == "layers":
        assert all((bits == bits[:, :1]).all() for bits in path)


def test_a_path_takes_what_wins_most_a_bit() -> None:
    """One step at a time, where raises are worth what they are alone."""
    profile = make_importance(2, 3)
    bits = np.full((2, 3), 2)
    path = greedy_path(profile, bits, [2 + k / 6 for k in range(1, 7)])
    for reached in path:
        single = []
        for shard in np.ndindex(2, 3):
            raised = bits.copy()
            raised[shard] += 1
            single.append((profile.distortion(bits) - profile.distortion(raised), shard))
        bits[max(single)[1]] += 1
        assert (reached == bits).all()


def test_large_grids_take_several_raises_at_once() -> None:
    profile = EffectsImportance(make_effects(20, 20))
    path = greedy_path(profile, np.full((20, 20), 2), [2.5, 3.0])
    assert 2.99 < path[1].mean() <= 3
    random = np.full((20, 20), 2)
    random.ravel()[np.random.default_rng(0).permutation(400)[:400]] = 3
    assert profile.distortion(path[1]) < profile.distortion(random)


def test_plans_to_check_are_all_uniform_ones_and_the_profiles_own() -> None:
    profile = EffectsImportance(make_effects(4, 6))
    plans = plans_to_check([profile], 4, 6, lowest=3)
    assert len(np.unique(plans, axis=0)) == len(plans)
    assert plans.min() == 3
    for bits in (3, 4, 5, 6):
        assert (plans == bits).all(axis=(1, 2)).any()
    own = greedy_path(profile, np.full((4, 6), 3), [3.5, 4.0])
    assert all((plans == bits).all(axis=(1, 2)).any() for bits in own)


def test_checked_plans_are_what_the_runtime_computes(tmp_path: Path) -> None:
    model = tiny_model(BertForSequenceClassification)
    order = [torch.randperm(HEADS).tolist() for _ in range(LAYERS)]
    store = store_of(model, tmp_path / "store", slice_order=order)
    batches = [tiny_inputs(model, seed=seed) for seed in range(2)]
    plans = np.stack([random_bits(store, seed) for seed in range(3)]).astype(np.uint8)
    twin = copy.deepcopy(model)
    checked = check_plans(twin, PlanWeights(twin, store), batches, plans)
    for bits, distortion in zip(plans.astype(int), checked.distortion):
        streamed = running(store, plan_of(store, bits))
        moved = []
        for batch in batches:
            with torch.no_grad():
                change = logits_of(streamed(**batch)) - model(**batch).logits
            moved.append((change[:, 0] - change[:, 1]) / 2**0.5)
        streamed.sti.close()
        assert distortion == pytest.approx(float(torch.cat(moved).square().mean()), rel=1e-3)
