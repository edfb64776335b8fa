"""`sti profile-device` measures every time, and says what it found and where it is kept."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import BertForSequenceClassification

from sti_hf import DeviceProfile, ShardStore, shard_checkpoint
from sti_hf.integrations.busy_profiles import busy_path
from sti_hf.integrations.device_profiles import device_profile_path
from sti_hf.profiling.device import MeasuredDevice
from tests.commands import Sti, done
from tests.integrations.checkpoints import DEVICE, checkpoint, use_known_device


@pytest.fixture(autouse=True)
def _known_device(monkeypatch: pytest.MonkeyPatch) -> None:
    use_known_device(monkeypatch)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("profile_device")
    return shard_checkpoint(
        checkpoint(BertForSequenceClassification, folder / "model"), folder / "store", quantizer="gobo"
    ).path


def test_profile_device(sti: Sti, store: Path) -> None:
    printed = done(sti("profile-device", store, "--json"))
    assert DeviceProfile.from_json(printed.out) == DEVICE
    shown = done(sti("profile-device", store, "--compute-dtype", "float32")).out
    path = device_profile_path(ShardStore.open(store), "float32")
    assert shown.splitlines()[-1] == f"kept in {path}"
    assert DeviceProfile.from_json(path.read_text()) == DEVICE
    assert "100 MB/s" in shown


@pytest.mark.parametrize(
    ("kept_before", "next_time"),
    [
        (False, "so the profile is used for an hour only and measured again then."),
        (True, "by this process only; the one that was kept before stays."),
    ],
)
def test_profile_device_on_a_busy_machine(
    sti: Sti, store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_before: bool, next_time: str
) -> None:
    monkeypatch.setenv("STI_HOME", str(tmp_path / "home"))
    if kept_before:
        done(sti("profile-device", store, "--compute-dtype", "float32"))
    monkeypatch.setattr(
        "sti_hf.integrations.device_profiles.measure_device", lambda *_, **__: MeasuredDevice(DEVICE, busy=True)
    )
    result = sti("profile-device", store, "--compute-dtype", "float32")
    assert result.status == 0
    assert result.err.startswith("sti: warning: The machine was busy")
    assert result.err.count("\n") == 1
    assert result.err.endswith(f"{next_time}\n")
    path = device_profile_path(ShardStore.open(store), "float32")
    assert result.out.splitlines()[-1] == ("not kept" if kept_before else f"kept in {busy_path(path)}")
    assert path.exists() is kept_before


def test_profile_device_measures_every_time(sti: Sti, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    measured = MeasuredDevice(DEVICE, busy=False)
    monkeypatch.setattr(
        "sti_hf.integrations.device_profiles.measure_device", lambda *_, **__: calls.append(1) or measured
    )
    for _ in range(2):
        done(sti("profile-device", store))
    assert len(calls) == 2
