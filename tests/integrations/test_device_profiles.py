"""Device profiles are measured once, by one process, and whatever is wrong with the cache stops nobody."""

from __future__ import annotations

import errno
import os
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from sti_hf import DeviceProfile, ShardStore
from sti_hf.config import COMPUTE_DTYPES
from sti_hf.errors import ConfigurationError
from sti_hf.integrations.device_profiles import (
    device_profile,
    device_profile_path,
    kept_profile_path,
    rate_limit,
)
from sti_hf.integrations.store_cache import cache_home
from sti_hf.runtime.gemm import ComputePath
from tests.integrations.checkpoints import DEVICE
from tests.integrations.measuring import Machine, one_warning, put, silent_profile


@pytest.fixture
def store(classifier_store: Path) -> ShardStore:
    return ShardStore.open(classifier_store)


def test_made_on_first_use_and_kept(store: ShardStore, own_home: Path, machine: Machine) -> None:
    path = device_profile_path(store, "float32")
    assert path.parent == cache_home() / "profiles" == own_home / "profiles"
    assert not path.exists()
    first = silent_profile(store, compute_dtype="float32")
    assert silent_profile(store, compute_dtype="float32") == first
    assert machine.calls == ["float32"]
    assert DeviceProfile.from_json(path.read_text()) == first
    assert kept_profile_path(store, "float32") == path
    assert list(own_home.rglob("*")) == [path.parent, path], "no temporary file is left"


def test_measured_again_on_demand(store: ShardStore, machine: Machine) -> None:
    put(device_profile_path(store, "auto"), DeviceProfile(**{**asdict(DEVICE), "bytes_per_second": 5.0}).to_json())
    assert device_profile(store).bytes_per_second == 5
    assert device_profile(store, measure=True).bytes_per_second == 1
    assert device_profile(store).bytes_per_second == 1
    assert machine.calls == ["auto"]


def test_one_profile_for_every_dtype_store_and_rate(
    store: ShardStore, own_home: Path, classifier_store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = ShardStore.open(classifier_store)
    object.__setattr__(other, "index", replace(other.index, fingerprint="another"))
    paths = {device_profile_path(each, dtype) for each in (store, other) for dtype in COMPUTE_DTYPES}
    monkeypatch.setenv("STI_READ_RATE", "1e8")
    paths.add(device_profile_path(store, "auto"))
    assert len(paths) == 7


# A profile that cannot be used.


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[]",
        '{"version": 99}',
        "null",
        DEVICE.to_json().replace("1e-05", "-1"),
        DEVICE.to_json().replace('"default"', '"none such"'),
        DEVICE.to_json().replace('"default"', "[]"),
        DEVICE.to_json().replace('"float32"', '"float8"'),
        "[" * 100_000,
        '{"a":' * 100_000,
    ],
    ids=lambda text: text[:12] or "empty",
)
def test_a_damaged_profile_is_measured_again(store: ShardStore, machine: Machine, content: str) -> None:
    path = put(device_profile_path(store, "auto"), content)
    profile = one_warning(store, f"{path} is measured again: ")
    assert machine.calls == ["auto"]
    assert DeviceProfile.from_json(path.read_text()) == profile
    assert silent_profile(store) == profile


def test_not_text(store: ShardStore, machine: Machine) -> None:
    path = put(device_profile_path(store, "auto"), "")
    path.write_bytes(b"\xff\xfe\x00")
    one_warning(store, f"{path} is measured again: ")
    silent_profile(store)


def test_a_folder_in_the_place_of_the_profile(store: ShardStore, machine: Machine) -> None:
    path = device_profile_path(store, "auto")
    path.mkdir(parents=True)
    one_warning(store, f"{path} is measured again: ")
    silent_profile(store)
    assert path.is_file()


def test_a_file_that_cannot_be_read(store: ShardStore, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(device_profile_path(store, "auto"), DEVICE.to_json())
    read_text = Path.read_text

    def read(file: Path, *arguments: Any, **options: Any) -> str:
        if file == path:
            raise OSError(errno.EIO, "Input/output error")
        return read_text(file, *arguments, **options)

    monkeypatch.setattr(Path, "read_text", read)
    one_warning(store, f"{path} is measured again: [Errno {errno.EIO}] Input/output error")


def test_a_path_that_does_not_work_here(store: ShardStore, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    path = put(device_profile_path(store, "auto"), replace(DEVICE, compute_dtype="bfloat16").to_json())
    monkeypatch.setattr(ComputePath, "works", lambda self: self.dtype == "float32")
    one_warning(store, f"{path} is measured again: This machine cannot compute in bfloat16 by default")


@pytest.mark.parametrize(
    "changes",
    [
        {"decompress_seconds": {}},
        {"decompress_seconds": {2: 1e-10, 32: 1e-10}},
        {"widths": (1, 3)},
        {"layer_seconds": ((0.6, 0.1), (0.7, 0.8))},
        {"layer_seconds": ((0.1, 0.8), (0.2, 0.7))},
        {"layer_seconds": ((0.0, 0.0), (0.0, 0.0))},
        {"compute_dtype": "bfloat16"},
    ],
    ids=str,
)
def test_a_whole_profile_that_cannot_be_right_is_measured_again(
    store: ShardStore, machine: Machine, changes: dict[str, Any]
) -> None:
    path = put(device_profile_path(store, "float32"), replace(DEVICE, **changes).to_json())
    with pytest.warns(UserWarning, match=f"{path} is measured again: "):
        profile = device_profile(store, "float32")
    assert machine.calls == ["float32"]
    assert DeviceProfile.from_json(path.read_text()) == profile


def test_profiles_of_the_time_when_any_was_kept_are_measured_again(store: ShardStore, machine: Machine) -> None:
    content = DEVICE.to_json()
    path = put(device_profile_path(store, "auto"), content.replace('"version": 4', '"version": 3'))
    assert path.read_text() != content
    one_warning(store, f"{path} is measured again: ")
    assert machine.calls == ["auto"]


def test_a_pipe_in_the_place_of_the_profile_is_not_waited_for(store: ShardStore, machine: Machine) -> None:
    path = device_profile_path(store, "auto")
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    one_warning(store, f"{path} is measured again: It is not a file.")
    assert path.is_file()


# Rates.


@pytest.mark.parametrize("rate", ["fast", "-1", "nan", "inf", "-inf", "1e999", ""])
def test_a_rate_that_is_none(store: ShardStore, monkeypatch: pytest.MonkeyPatch, rate: str) -> None:
    monkeypatch.setenv("STI_READ_RATE", rate)
    with pytest.raises(
        ConfigurationError, match=f"STI_READ_RATE must be a number of bytes a second, not '{rate}'"
    ) as error:
        device_profile(store)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "rate"), [("0", 0), ("1e8", 1e8), ("25", 25)])
def test_a_rate(monkeypatch: pytest.MonkeyPatch, text: str, rate: float) -> None:
    monkeypatch.setenv("STI_READ_RATE", text)
    assert rate_limit() == rate
    monkeypatch.delenv("STI_READ_RATE")
    assert rate_limit() == 0
