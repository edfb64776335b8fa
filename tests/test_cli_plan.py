"""`sti plan`, as a person and as a script use it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    GPT2LMHeadModel,
)

from sti_hf import ExecutionPlan, shard_checkpoint
from sti_hf.planning import Workload
from tests.commands import Sti, done
from tests.integrations.checkpoints import checkpoint


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    source = checkpoint(BertForSequenceClassification, folder / "model")
    return shard_checkpoint(source, folder / "store", quantizer="gobo").path


def test_plan(sti: Sti, store: Path) -> None:
    shown = done(sti("plan", store, "--target-latency", "5ms", "--preload-budget", "4KB")).out
    assert "T = 5 ms" in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert "\x1b" not in shown, "no colours where there is no terminal"
    for layer in range(3):
        assert f"layer {layer}" in shown


def test_plan_is_what_runs(sti: Sti, store: Path) -> None:
    options = {"target_latency": "8ms", "preload_budget": "9kB"}
    printed = done(sti("plan", store, "--target-latency", "8ms", "--preload-budget", "9kB", "--json")).out
    plan = ExecutionPlan.from_json(printed)
    assert (plan.target_latency, plan.preload_budget) == (0.008, 9000)
    model = AutoModelForSequenceClassification.from_pretrained(store, sti_config=options)
    assert json.loads(printed) == json.loads(model.sti.plan.to_json())
    model.sti.close()


def test_options_of_plan(sti: Sti, store: Path) -> None:
    def planned(*options: Any) -> ExecutionPlan:
        return ExecutionPlan.from_json(done(sti("plan", store, "--json", *options)).out)

    assert planned().target_latency == 0.2
    assert planned("--seq-len", 33).workload == Workload(64)
    assert planned("--seq-len", 33, "--batch-size", 4).workload == Workload(64, 4)
    assert planned("--allocator", "two_pass").allocator == "two_pass"
    hurried = "--target-latency", "3.9ms"
    assert planned(*hurried).is_whole and not planned(*hurried).feasible
    part = planned(*hurried, "--submodels", "any")
    assert part.feasible and not part.is_whole and part.submodels == "any"
    assert planned("--memory-budget", "200kB").staging_budget <= 200_000
    assert planned("--submodels", "measured", "--max-loss", 3, "--fixed-plan").submodels == "measured"
    baseline = planned("--strategy", "std_pipeline", "--fidelity", 4)
    assert (baseline.strategy, set(baseline.bits.ravel())) == ("std_pipeline", {4})


def test_a_stores_own_defaults(sti: Sti, store: Path, tmp_path: Path) -> None:
    mine = shutil.copytree(store, tmp_path / "mine")
    config = json.loads((mine / "config.json").read_text())
    config["quantization_config"]["target_latency"] = "77ms"
    (mine / "config.json").write_text(json.dumps(config))
    assert done(sti("plan", mine, "--json")).json["target_latency"] == 0.077
    assert done(sti("plan", mine, "--json", "--target-latency", "5ms")).json["target_latency"] == 0.005


def test_a_latency_that_cannot_be_met(sti: Sti, store: Path) -> None:
    shown = done(sti("plan", store, "--target-latency", "1us"))
    assert "No plan keeps T: this is the fastest." in shown.out
    assert done(sti("plan", store, "--target-latency", "1us", "--json")).json["feasible"] is False
    strict = sti("plan", store, "--target-latency", "10us", "--strict")
    assert strict.status == 2
    assert strict.out == ""
    assert "No plan of 70 tokens meets the target latency of 0.01 ms: the fastest, the whole model" in strict.err


def test_the_vocabulary_of_a_language_model_has_a_plan_of_its_own(sti: Sti, tmp_path: Path) -> None:
    source = checkpoint(GPT2LMHeadModel, tmp_path / "model")
    store = shard_checkpoint(source, tmp_path / "store", quantizer="gobo").path
    asked = "--target-latency", "9ms", "--target-token-latency", "7ms", "--preload-budget", "9kB"
    shown = done(sti("plan", store, *asked)).out.splitlines()
    assert shown[0] == "layers" and "vocabulary" in shown
    printed = done(sti("plan", store, *asked, "--json")).out
    plan, of_strips = ExecutionPlan.from_json(printed), ExecutionPlan.from_json(_vocabulary(printed))
    assert plan.target_latency + of_strips.target_latency == pytest.approx(0.009)
    options = {"target_latency": "9ms", "target_token_latency": "7ms", "preload_budget": "9kB"}
    model = AutoModelForCausalLM.from_pretrained(store, sti_config=options)
    assert model.sti.plan.to_json() == plan.to_json()
    assert model.sti.vocabulary_plan.to_json() == of_strips.to_json()
    model.sti.close()
    full = done(sti("plan", store, "--strategy", "preload", "--fidelity", 32, "--json")).json
    assert "vocabulary" not in full, "its table is streamed"


def _vocabulary(printed: str) -> str:
    return json.dumps(json.loads(printed)["vocabulary"])
