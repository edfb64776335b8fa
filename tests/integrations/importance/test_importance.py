"""Profiling a task end to end: from a store and a dataset to plans that use the profile."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForSequenceClassification,
    BertModel,
)

from sti_hf import ExecutionPlan, ShardStore, shard_checkpoint
from sti_hf.integrations.importance import profile_importance
from sti_hf.planning.effects import EffectsImportance
from sti_hf.planning.exhaustive import ExhaustiveImportance
from sti_hf.planning.importance_file import best_first, profile_names, read_profile, submodel_accuracy, write_profile
from sti_hf.profiling.submodels import coarse_grid
from sti_hf.profiling.tasks import Task
from sti_hf.shards.store import store_defaults
from sti_hf.shards.verification import verify_store
from tests.commands import Sti, done
from tests.integrations.checkpoints import checkpoint
from tests.models import HEADS, LAYERS
from tests.tasks import TASK

EXHAUSTIVE = ("--task", "sst2", "--method", "exhaustive", "--base-fidelity", 2)


def resume_folder() -> Path:
    return Path(os.environ["STI_HOME"]) / "importance"


def test_profile_importance(sti: Sti, folder: Path, store: Path) -> None:
    printed = done(sti("profile-importance", store, *EXHAUSTIVE, "--dataset", folder / "data", "--json")).json
    opened = ShardStore.open(store)
    profile, facts = read_profile(opened, "sst2")
    assert isinstance(profile, ExhaustiveImportance)
    assert printed["worth"] == pytest.approx(profile.worth())
    assert printed["file"] == str(store / "importance-sst2.safetensors")
    for key, value in {"task": "sst2", "part": "first", "sentences": 20, "metric": "accuracy", "base_bits": 2}.items():
        assert printed[key] == facts[key] == value
    assert facts["dataset"] == str(folder / "data")
    assert 0.6 < facts["full_score"] <= 1
    assert store_defaults(store)["importance"] == "sst2"
    assert set(submodel_accuracy(opened, facts)) == set(coarse_grid(LAYERS, HEADS))
    with Image.open(printed["picture"]) as picture:
        assert picture.format == "PNG"
        assert picture.width > 300
    assert verify_store(opened) == []
    assert not list(resume_folder().glob("*")), "nothing is left to be taken up"
    shown = done(sti("profile-importance", store, *EXHAUSTIVE, "--dataset", folder / "data", "--name", "again")).out
    assert shown.startswith("again: exhaustive, 20 sentences, from 2 bits\n")
    assert f"{facts['full_score']:.4f} in full" in shown
    assert profile_names(opened) == ["again", "sst2"]
    assert store_defaults(store)["importance"] == "again"


def test_effects_are_the_default(sti: Sti, folder: Path, store: Path) -> None:
    arguments = ("profile-importance", store, "--task", "sst2", "--dataset", folder / "data", "--max-length", 16)
    printed = done(sti(*arguments, "--json")).json
    opened = ShardStore.open(store)
    profile, facts = read_profile(opened, "sst2")
    assert isinstance(profile, EffectsImportance)
    assert printed["worth"] == pytest.approx(profile.worth(), rel=1e-2)
    assert (facts["base_bits"], facts["metric"], facts["sentences"]) == (2, "accuracy", 20)
    assert set(submodel_accuracy(opened, facts)) == set(coarse_grid(LAYERS, HEADS))
    assert Path(printed["picture"]).read_bytes().startswith(b"\x89PNG")
    plan = done(sti("plan", store, "--target-latency", "7ms", "--preload-budget", "4kB", "--json")).json
    assert plan["distortion"] == pytest.approx(profile.distortion(np.array(plan["bits"])))
    done(sti("reorder", store))
    assert np.array_equal(best_first(ShardStore.open(store), "sst2"), np.tile(np.arange(HEADS), (LAYERS, 1)))


def test_effects_need_no_labels(sti: Sti, folder: Path, store: Path) -> None:
    done(sti("profile-importance", store, "--task", "sst2", "--dataset", folder / "data", "--split", "test"))
    opened = ShardStore.open(store)
    unlabelled, facts = read_profile(opened, "sst2")
    assert facts["metric"] is None
    assert submodel_accuracy(opened, facts) == {}
    measured = profile_importance(store, "sst2", dataset=str(folder / "data"), name="labelled")
    assert np.array_equal(measured.profile.worth(), unlabelled.worth()), "labels change nothing"  # type: ignore[attr-defined]


def test_effects_of_any_head(folder: Path, tmp_path: Path) -> None:
    source = checkpoint(BertModel, tmp_path / "model")
    shard_checkpoint(source, tmp_path / "store", quantizer="gobo")
    task = Task("search", ("sentence",), metric=None, dataset=str(folder / "data"))
    measured = profile_importance(tmp_path / "store", task, samples=8)
    assert (measured.profile.worth() > 0).all()
    with pytest.raises(ValueError, match="'exhaustive' needs a metric, and task search has none"):
        profile_importance(tmp_path / "store", task, method="exhaustive")


def test_plans_use_the_stores_profile(sti: Sti, profiled: Path) -> None:
    options = {"target_latency": "7ms", "preload_budget": "4kB"}
    arguments = ("plan", profiled, "--target-latency", "7ms", "--preload-budget", "4kB", "--json")
    plan = ExecutionPlan.from_json(done(sti(*arguments)).out)
    profile, _ = read_profile(ShardStore.open(profiled), "sst2")
    assert plan.distortion == pytest.approx(profile.distortion(plan.bits))
    assert len(np.unique(plan.bits)) > 1, "a plan that has something to choose"
    named = ExecutionPlan.from_json(done(sti(*arguments, "--importance", "sst2")).out)
    assert named.to_json() == plan.to_json()
    model = AutoModelForSequenceClassification.from_pretrained(profiled, sti_config=options)
    assert np.array_equal(model.sti.plan.bits, plan.bits)
    model.sti.close()
    default = ExecutionPlan.from_json(done(sti(*arguments, "--importance", "default")).out)
    assert default.distortion != plan.distortion
    baseline = done(sti(*arguments, "--strategy", "preload", "--fidelity", 2, "--importance", "nothing")).json
    assert baseline["strategy"] == "preload"
    refused = sti(*arguments, "--importance", "mrpc")
    assert (refused.status, refused.out) == (2, "")
    assert "has no importance profile 'mrpc'; it has sst2." in refused.err


def test_plans_use_the_accuracy_of_submodels(sti: Sti, store: Path) -> None:
    opened = ShardStore.open(store)
    profile = ExhaustiveImportance(np.zeros((LAYERS, HEADS)), np.zeros((LAYERS, HEADS)), 2, 0.5, 0.7)
    accuracy = [[LAYERS, HEADS, 0.6], [2, 3, 0.9], [1, 4, 0.9]]
    measured = {"slice_order": opened.stack.slice_order, "bits": 6, "accuracy": accuracy}
    write_profile(opened, "mine", profile, {"submodels": [measured]})
    for importance, submodel in (("mine", [2, 3]), ("default", [LAYERS, HEADS])):
        plan = done(sti("plan", store, "--target-latency", "1s", "--importance", importance, "--json")).json
        assert plan["submodel"] == submodel


def test_reorder(sti: Sti, folder: Path, profiled: Path, tmp_path: Path) -> None:
    store = shutil.copytree(profiled, tmp_path / "store")
    before = ShardStore.open(store)
    order = best_first(before, "sst2")
    assert not np.array_equal(order, np.tile(np.arange(HEADS), (LAYERS, 1)))
    accuracy = submodel_accuracy(before, read_profile(before, "sst2")[1])
    printed = done(sti("reorder", store, "--json")).json
    after = ShardStore.open(store)
    assert printed["slice_order"] == [list(slices) for slices in after.stack.slice_order] == order.tolist()
    assert np.array_equal(best_first(after, "sst2"), np.tile(np.arange(HEADS), (LAYERS, 1)))
    assert read_profile(after, "sst2")[0].distortion(np.full((LAYERS, HEADS), 3)) == pytest.approx(
        read_profile(before, "sst2")[0].distortion(np.full((LAYERS, HEADS), 3))
    )
    reordered = submodel_accuracy(after, read_profile(after, "sst2")[1])
    assert reordered.keys() == accuracy.keys()
    assert reordered[LAYERS, HEADS] == accuracy[LAYERS, HEADS]
    assert reordered != accuracy
    assert store_defaults(store) == store_defaults(profiled)
    stock = AutoModelForSequenceClassification.from_pretrained(folder / "model")
    full = {"strategy": "preload", "fidelity": 32, "compute_dtype": "float32", "target_latency": 1.0}
    model = AutoModelForSequenceClassification.from_pretrained(store, sti_config=full)
    ids = torch.randint(12, 200, (2, 9))
    with torch.no_grad():
        torch.testing.assert_close(model(ids).logits, stock(ids).logits, rtol=1e-5, atol=1e-5)
    model.sti.close()
    assert "stand first" in done(sti("reorder", store, "--importance", "sst2")).out
    refused = sti("reorder", folder / "store")
    assert refused.status == 2
    assert "has no default importance profile; name one, or profile it first" in refused.err
    assert "has no importance profile 'x'; it has none" in sti("reorder", folder / "store", "--importance", "x").err


def test_an_interruption(sti: Sti, folder: Path, store: Path, profiled: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sti_hf.model.layer_runner import LayerRunner

    stock, calls = LayerRunner.finish, 0

    def interrupted(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 6:
            raise KeyboardInterrupt
        return stock(*arguments)

    arguments = ("profile-importance", store, *EXHAUSTIVE, "--dataset", folder / "data")
    before = {path.name: path.read_bytes() for path in store.iterdir()}
    with monkeypatch.context() as patch:
        patch.setattr(LayerRunner, "finish", interrupted)
        result = sti(*arguments)
        assert (result.status, result.err) == (130, "sti: interrupted\n")
        assert {path.name: path.read_bytes() for path in store.iterdir()} == before
        assert list(resume_folder().glob("*/shards-2-*"))
        calls = 1000
        done(sti(*arguments))
        assert calls - 1000 == LAYERS * HEADS - 5, "what was done is not done again"
    assert (store / "importance-sst2.safetensors").read_bytes() == (
        profiled / "importance-sst2.safetensors"
    ).read_bytes()
    assert not list(resume_folder().glob("*"))


def test_a_task_of_ones_own(folder: Path, store: Path) -> None:
    task = replace(TASK, name="intents", columns=("sentence",), dataset=str(folder / "data"))
    measured = profile_importance(store, task, method="exhaustive", base_bits=3, part="all", samples=16)
    assert (measured.name, measured.facts["sentences"]) == ("intents", 16)
    profile, facts = read_profile(ShardStore.open(store), "intents")
    assert np.array_equal(profile.table, measured.profile.table)  # type: ignore[attr-defined]
    assert facts == json.loads(json.dumps(measured.facts))


def test_two_processes_measure_the_same(folder: Path, store: Path, profiled: Path, tmp_path: Path) -> None:
    launch = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0"]
    arguments = [*EXHAUSTIVE, "--dataset", str(folder / "data"), "--json"]
    environment = {**os.environ, "STI_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        [sys.executable, *launch, "-m", "sti_hf.cli", "profile-importance", str(store), *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    assert json.loads(result.stdout)["name"] == "sst2", "one of the processes prints, and JSON alone"
    assert (store / "importance-sst2.safetensors").read_bytes() == (
        profiled / "importance-sst2.safetensors"
    ).read_bytes()
    assert not list((tmp_path / "home" / "importance").glob("*"))
