"""The command `sti` on stores of models with several stacks."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import CLIPModel

from sti_hf import shard_checkpoint
from sti_hf.planning import DeviceProfile
from tests.commands import Sti, done
from tests.models import tiny_model

TOWERS = {"text_model", "vision_model"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("two")
    tiny_model(CLIPModel).save_pretrained(folder / "model")
    return shard_checkpoint(folder / "model", folder / "store", quantizer="gobo").path


def test_shard(sti: Sti, store: Path, tmp_path: Path) -> None:
    printed = done(sti("shard", store.with_name("model"), tmp_path / "new", "--json")).json
    assert printed["stacks"] == {name: {"layers": 3, "slices": 4} for name in TOWERS}
    assert "3 x 4 and 3 x 4 shards" in done(sti("shard", store.with_name("model"), tmp_path / "other")).out


def test_plan(sti: Sti, store: Path) -> None:
    options = "--target-latency", "100ms", "--preload-budget", "8kB"
    plans = done(sti("plan", store, *options, "--json")).json
    assert plans.keys() == TOWERS
    assert sum(plan["target_latency"] for plan in plans.values()) == pytest.approx(0.1)
    assert plans["text_model"]["workload"]["tokens"] == 70, "the longest text, which is shorter than 128 tokens"
    shown = done(sti("plan", store, *options)).out
    assert all(name in shown.splitlines() for name in TOWERS)


def test_profile_device_and_verify(sti: Sti, store: Path) -> None:
    profiles = done(sti("profile-device", store, "--json")).json
    assert profiles.keys() == TOWERS
    assert set(profiles["text_model"]) >= set(DeviceProfile.__dataclass_fields__)
    shown = done(sti("profile-device", store)).out
    assert all(name in shown.splitlines() for name in TOWERS)
    assert "intact" in done(sti("verify", store)).out


@pytest.mark.parametrize("verb", [("reorder",), ("run", "a text"), ("report",)])
def test_verbs_for_models_with_one(sti: Sti, store: Path, verb: tuple[str, ...]) -> None:
    name, *texts = verb
    result = sti(name, store, *texts)
    assert result.status != 0 and result.out == ""
    assert "has the stacks text_model and vision_model, and this is for models with one" in result.err
