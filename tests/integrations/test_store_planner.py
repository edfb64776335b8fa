"""StorePlanner: what a store and a configuration make of a request."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import BertModel, RobertaModel

from sti_hf import STIConfig, shard_checkpoint
from sti_hf.errors import ConfigurationError, PlanError
from sti_hf.integrations import store_planner
from sti_hf.integrations.session import open_session
from sti_hf.integrations.store_model import load_model_on
from sti_hf.integrations.store_planner import ELASTIC, StorePlanner
from sti_hf.planning import Workload, make_plan
from sti_hf.shards.store import ShardStore
from tests.integrations.checkpoints import DEVICE, checkpoint
from tests.models import tiny_inputs


@pytest.fixture
def store(classifier_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShardStore:
    """A store, and a cache, of one's own."""
    monkeypatch.setenv("STI_HOME", str(tmp_path / "home"))
    return ShardStore.open(shutil.copytree(classifier_store, tmp_path / "store"))


def planner_of(store: ShardStore, **config: Any) -> StorePlanner:
    """A planner of the store with these fields in its config.json."""
    path = store.path / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **config}))
    return StorePlanner(store, DEVICE)


SHORT = STIConfig(target_latency=0.0063)
"""Too short for the whole model, long enough for a part of it."""


def test_a_part_that_was_never_measured_runs_only_where_it_is_asked_for(store: ShardStore) -> None:
    planner = planner_of(store)
    whole = planner.plan(SHORT, Workload(128))
    assert whole.is_whole and not whole.feasible and set(whole.bits.ravel()) == {2}
    part = planner.plan(SHORT.replaced(submodels="any"), Workload(128))
    assert part.feasible and not part.is_whole


def test_an_elastic_store_vouches_for_its_parts(store: ShardStore) -> None:
    planner = planner_of(store, **{ELASTIC: True})
    assert planner.is_elastic and not planner.plan(SHORT, Workload(128)).is_whole
    assert planner.plan(SHORT.replaced(submodels="none"), Workload(128)).is_whole
    assert planner_of(store, **{ELASTIC: False}).plan(SHORT, Workload(128)).is_whole, (
        "another plan than the cached one"
    )


def test_measured_accuracy_is_what_the_profile_says(store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    n, m = store.grid.layers, store.grid.slices
    accuracy = {(n, m): 0.9, (n - 1, m): 0.885, (1, m): 0.7}
    monkeypatch.setattr(StorePlanner, "_importance_of", lambda planner, config: (None, accuracy))
    request = planner_of(store).request(STIConfig(max_loss=1.5), Workload(128))
    assert (request.submodels, request.max_loss, request.submodel_accuracy) == ("measured", 1.5, accuracy)


@pytest.mark.parametrize(("model_class", "longest"), [(BertModel, 70), (RobertaModel, 68)])
def test_a_length_that_the_model_does_not_take(model_class: Any, longest: int, tmp_path: Path) -> None:
    store = shard_checkpoint(checkpoint(model_class, tmp_path / "model"), tmp_path / "store", quantizer="gobo")
    planner = StorePlanner(store, DEVICE)
    with pytest.raises(ConfigurationError, match=f"seq_len is 129, and the longest input .* has {longest} tokens"):
        planner.plan(STIConfig(seq_len=129), Workload(256))
    assert planner.plan(STIConfig(), Workload(128)).feasible, "the default is no wish"


def test_plans_are_cached_by_workload(store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(
        store_planner, "make_plan", lambda request: made.append(request.workload) or make_plan(request)
    )
    planner = planner_of(store)
    for workload in (Workload(16), Workload(16, 4), Workload(16), Workload(16, 4)):
        assert planner.plan(STIConfig(), workload).workload == workload
    assert made == [Workload(16), Workload(16, 4)]


def test_latency_of_a_plan(store: ShardStore) -> None:
    planner = planner_of(store)
    plan = planner.plan(STIConfig(target_latency=0.02, preload_budget=5000), Workload(64))
    assert planner.latency(plan, Workload(64)) == plan.predicted_latency
    assert planner.latency(plan, Workload(64, 8)) > plan.predicted_latency > planner.latency(plan, Workload(16))


@pytest.mark.parametrize("refine", [False, True])
def test_a_memory_budget_is_kept_by_what_runs(store: ShardStore, refine: bool) -> None:
    request = planner_of(store).request(STIConfig(memory_budget=0, refine=refine), Workload(16))
    with pytest.raises(PlanError, match="too small") as no:
        make_plan(request)
    least = int(str(no.value).split("need ")[1].split()[0])
    for budget in (least, 2 * least, 100 * least):
        config = STIConfig(memory_budget=budget, preload_budget="1MB", seq_len=16, refine=refine)
        session = open_session(store, config)
        model = load_model_on(store, session)
        model(**tiny_inputs(model))
        memory = session.memory()
        assert memory["preload"] + memory["staging"] + memory["working"] <= budget
        session.close()
