"""Stands for the measurement of devices, which takes a while."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from sti_hf import DeviceProfile, ShardStore
from sti_hf.integrations.device_profiles import device_profile
from sti_hf.profiling.device import MeasuredDevice
from tests.integrations.checkpoints import DEVICE

BUSY = "The machine was busy while this device was profiled, so the profile is used"


class Machine:
    """Takes the place of `measure_device`: counts how often it is asked to measure."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.busy = False

    def __call__(self, store: ShardStore, load: Any, *, compute_dtype: str, **options: Any) -> MeasuredDevice:
        self.calls.append(compute_dtype)
        return MeasuredDevice(replace(DEVICE, bytes_per_second=float(len(self.calls))), self.busy)


def put(path: Path, content: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content)
    return path


def silent_profile(store: ShardStore, **options: Any) -> DeviceProfile:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return device_profile(store, **options)


def one_warning(store: ShardStore, sentence: str, **options: Any) -> DeviceProfile:
    with pytest.warns(UserWarning) as caught:
        profile = device_profile(store, **options)
    (message,) = [str(each.message) for each in caught]
    assert sentence in message
    assert "\n" not in message
    return profile
