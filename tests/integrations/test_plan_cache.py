"""Plans are kept on disk for as long as nothing they depend on changes."""

from __future__ import annotations

import os
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import BertForSequenceClassification

from sti_hf import STIConfig, shard_checkpoint
from sti_hf.integrations import plan_cache, store_planner
from sti_hf.integrations.device_profiles import device_profile_path
from sti_hf.integrations.session import open_session
from sti_hf.integrations.store_cache import cache_home
from sti_hf.planning import make_plan
from sti_hf.shards.index import INDEX_FILE
from sti_hf.shards.store import ShardStore
from tests.integrations.checkpoints import DEVICE, checkpoint


@pytest.fixture
def store(classifier_store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ShardStore:
    """A store, and a cache, of one's own."""
    monkeypatch.setenv("STI_HOME", str(tmp_path / "home"))
    return ShardStore.open(shutil.copytree(classifier_store, tmp_path / "store"))


@pytest.fixture
def planned(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Token counts that were planned for, one after the other."""
    counts: list[int] = []

    def counting(request: Any) -> Any:
        counts.append(request.workload.tokens)
        return make_plan(request)

    monkeypatch.setattr(store_planner, "make_plan", counting)
    return counts


def open_plan(store: ShardStore, **config: Any) -> Any:
    opened = open_session(store, STIConfig(**config))
    opened.close()
    return opened.plan


def test_the_second_session_does_not_plan(store: ShardStore, planned: list[int]) -> None:
    first, second = open_plan(store), open_plan(store)
    assert planned == [70], "the longest text of this model"
    assert second.to_json() == first.to_json()
    assert np.array_equal(second.preloaded_pieces, first.preloaded_pieces)


@pytest.mark.parametrize(
    "change", [{"target_latency": 0.01}, {"preload_budget": 0}, {"seq_len": 16}, {"allocator": "two_pass"}], ids=str
)
def test_another_configuration(store: ShardStore, planned: list[int], change: dict[str, Any]) -> None:
    open_plan(store)
    plan = open_plan(store, **change)
    assert len(planned) == 2
    name, value = next(iter(change.items()))
    assert (plan.workload.tokens if name == "seq_len" else getattr(plan, name)) == value


def test_another_device(store: ShardStore, planned: list[int]) -> None:
    open_plan(store)
    device_profile_path(store, "auto").write_text(
        DEVICE.to_json().replace(str(DEVICE.bytes_per_second), str(DEVICE.bytes_per_second / 2))
    )
    open_plan(store)
    assert len(planned) == 2


def test_another_store_in_the_same_place(store: ShardStore, planned: list[int]) -> None:
    open_plan(store)
    os.utime(store.path / INDEX_FILE)
    open_plan(store)
    assert len(planned) == 2


def test_a_damaged_plan_is_made_again(store: ShardStore, planned: list[int]) -> None:
    first = open_plan(store)
    (file,) = (cache_home() / "plans").iterdir()
    file.write_text(file.read_text()[:100])
    assert open_plan(store).to_json() == first.to_json()
    assert len(planned) == 2
    open_plan(store)
    assert len(planned) == 2


def with_checksum(key: str, content: str) -> str:
    return f"{plan_cache._checksum(key, content)}\n{content}"


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: "",
        lambda text: text.partition("\n")[2],
        lambda text: text.replace('"target_latency": 0.2', '"target_latency": 0.3'),
        lambda text: text + " ",
        lambda text: "[" * 100_000,
        lambda text: with_checksum("another key", text.partition("\n")[2]),
        lambda text: with_checksum("", '{"version": ' * 100_000),
    ],
    ids=["empty", "without a checksum", "another T", "longer", "deep", "of another key", "deep, of another key"],
)
def test_any_bad_plan_is_made_again(store: ShardStore, planned: list[int], damage: Callable[[str], str]) -> None:
    first = open_plan(store)
    (file,) = (cache_home() / "plans").iterdir()
    before = file.read_text()
    file.write_text(damage(before))
    assert file.read_text() != before
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_plan(store).to_json() == first.to_json()
    assert len(planned) == 2
    assert file.read_text() == before


def test_bytes_that_are_no_text(store: ShardStore, planned: list[int]) -> None:
    open_plan(store)
    (file,) = (cache_home() / "plans").iterdir()
    file.write_bytes(b"\xff\x00")
    open_plan(store)
    assert len(planned) == 2


def test_a_folder_in_the_place_of_a_plan(store: ShardStore, planned: list[int]) -> None:
    open_plan(store)
    (file,) = (cache_home() / "plans").iterdir()
    file.unlink()
    (file / "in the way").mkdir(parents=True)
    with pytest.warns(UserWarning, match="cannot be written to"):
        open_plan(store)
    assert len(planned) == 2


def test_the_plan_of_another_store_does_not_run(store: ShardStore, planned: list[int], tmp_path: Path) -> None:
    other = shard_checkpoint(
        checkpoint(BertForSequenceClassification, tmp_path / "other", num_hidden_layers=2),
        tmp_path / "other_store",
        quantizer="lloyd",
    )
    open_plan(other)
    (of_the_other,) = (cache_home() / "plans").iterdir()
    first = open_plan(store)
    (file,) = set((cache_home() / "plans").iterdir()) - {of_the_other}
    shutil.copy(of_the_other, file)
    assert open_plan(store).to_json() == first.to_json()
    assert len(planned) == 3


def test_a_cache_that_cannot_be_written(store: ShardStore, planned: list[int]) -> None:
    cache_home().mkdir()
    (cache_home() / "plans").write_text("in the way")
    with pytest.warns(UserWarning, match="cannot be written to") as caught:
        open_plan(store)
        open_plan(store)
    assert len(caught) == 1
    assert len(planned) == 2


def test_few_plans_are_kept(store: ShardStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan_cache, "MAX_PLANS", 4)
    for tokens in range(6):
        open_plan(store, target_latency=0.1 + 0.01 * tokens)
    assert len(list((cache_home() / "plans").iterdir())) <= 4
