"""What a busy machine measured is used for an hour, with a warning in every process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from sti_hf import DeviceProfile, ShardStore
from sti_hf.integrations import device_profiles
from sti_hf.integrations.busy_profiles import GOOD_FOR, busy_path, keep_busy
from sti_hf.integrations.device_profiles import device_profile, device_profile_path, kept_profile_path
from tests.integrations.checkpoints import DEVICE
from tests.integrations.measuring import BUSY, Machine, one_warning, put, silent_profile

NOON = 1.7e9
FOR_AN_HOUR = "used for an hour only and measured again then."


class Clock:
    """Seconds since the epoch, as a test wants them."""

    def __init__(self) -> None:
        self.now = NOON

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def store(classifier_store: Path) -> ShardStore:
    return ShardStore.open(classifier_store)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def busy(machine: Machine) -> Machine:
    machine.busy = True
    return machine


@pytest.fixture
def another_process(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Forgets what this process has measured."""
    return lambda: monkeypatch.setattr(device_profiles, "_of_this_process", {})


def test_this_process_uses_it_and_is_warned_once(store: ShardStore, busy: Machine, clock: Clock) -> None:
    first = one_warning(store, FOR_AN_HOUR, clock=clock)
    clock.now += 2 * GOOD_FOR
    assert silent_profile(store, clock=clock) == first
    path = device_profile_path(store, "auto")
    assert not path.exists()
    assert kept_profile_path(store, "auto") == busy_path(path)
    assert busy.calls == ["auto"]


@pytest.mark.parametrize("later", [0.0, 1.0, GOOD_FOR - 1])
def test_the_next_process_uses_it_within_the_hour(
    store: ShardStore, busy: Machine, clock: Clock, another_process: Callable[[], None], later: float
) -> None:
    first = one_warning(store, FOR_AN_HOUR, clock=clock)
    another_process()
    clock.now += later
    assert one_warning(store, FOR_AN_HOUR, clock=clock) == first
    assert silent_profile(store, clock=clock) == first
    assert busy.calls == ["auto"]


@pytest.mark.parametrize("later", [GOOD_FOR, 1e6, -1.0])
def test_it_is_measured_again_after_the_hour(
    store: ShardStore, busy: Machine, clock: Clock, another_process: Callable[[], None], later: float
) -> None:
    first = one_warning(store, BUSY, clock=clock)
    another_process()
    clock.now += later
    assert one_warning(store, FOR_AN_HOUR, clock=clock) != first
    another_process()
    clock.now += 1
    one_warning(store, FOR_AN_HOUR, clock=clock)
    assert busy.calls == ["auto", "auto"], "the hour begins anew"


def test_each_compute_dtype_has_its_own(store: ShardStore, busy: Machine, clock: Clock) -> None:
    one_warning(store, BUSY, clock=clock)
    one_warning(store, BUSY, compute_dtype="float32", clock=clock)
    assert busy.calls == ["auto", "float32"]


def test_measured_on_demand_when_the_machine_is_free_again(
    store: ShardStore, busy: Machine, clock: Clock, another_process: Callable[[], None]
) -> None:
    one_warning(store, BUSY, clock=clock)
    busy.busy = False
    free = silent_profile(store, measure=True, clock=clock)
    path = device_profile_path(store, "auto")
    assert list(path.parent.iterdir()) == [path], "that of the busy machine is gone"
    another_process()
    assert silent_profile(store, clock=clock) == free
    assert kept_profile_path(store, "auto") == path


def test_it_does_not_replace_a_profile_of_a_free_machine(
    store: ShardStore, machine: Machine, clock: Clock, another_process: Callable[[], None]
) -> None:
    free = silent_profile(store, clock=clock)
    machine.busy = True
    busy = one_warning(store, "by this process only; the one that was kept before stays.", measure=True, clock=clock)
    assert silent_profile(store, clock=clock) == busy != free
    path = device_profile_path(store, "auto")
    assert list(path.parent.iterdir()) == [path]
    assert kept_profile_path(store, "auto") is None
    another_process()
    assert silent_profile(store, clock=clock) == free


def test_where_the_cache_takes_nothing_it_is_of_this_process(
    store: ShardStore, busy: Machine, own_home: Path, clock: Clock
) -> None:
    own_home.write_text("in the way")
    with pytest.warns(UserWarning, match="by this process only and measured again next time"):
        first = device_profile(store, clock=clock)
    assert silent_profile(store, clock=clock) == first
    assert kept_profile_path(store, "auto") is None


def test_it_is_kept_even_where_the_warning_is_an_error(
    store: ShardStore, busy: Machine, clock: Clock, another_process: Callable[[], None]
) -> None:
    for _ in range(2):
        with pytest.raises(UserWarning, match=BUSY):
            silent_profile(store, clock=clock)
        silent_profile(store, clock=clock)
        another_process()
    assert busy.calls == ["auto"]


GOOD = {"busy": True, "measured": NOON, "profile": json.loads(DEVICE.to_json())}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "null",
        DEVICE.to_json(),
        json.dumps(GOOD | {"measured": "noon"}),
        json.dumps(GOOD | {"profile": None}),
        json.dumps(GOOD | {"profile": GOOD["profile"] | {"version": 3}}),
        json.dumps(GOOD | {"profile": GOOD["profile"] | {"widths": [1, 3]}}),
        "[" * 100_000,
    ],
    ids=lambda text: text[:12] or "empty",
)
def test_a_damaged_one_is_measured_again(store: ShardStore, machine: Machine, clock: Clock, content: str) -> None:
    path = put(busy_path(device_profile_path(store, "auto")), content)
    measured = one_warning(store, f"{path} is measured again: ", clock=clock)
    assert machine.calls == ["auto"]
    assert DeviceProfile.from_json(device_profile_path(store, "auto").read_text()) == measured
    assert not path.exists()


def test_a_pipe_in_its_place_is_not_waited_for(store: ShardStore, machine: Machine, clock: Clock) -> None:
    path = busy_path(device_profile_path(store, "auto"))
    path.parent.mkdir(parents=True)
    os.mkfifo(path)
    one_warning(store, f"{path} is measured again: It is not a file.", clock=clock)
    assert machine.calls == ["auto"]


def test_a_time_that_is_no_number_is_over(store: ShardStore, machine: Machine, clock: Clock) -> None:
    path = device_profile_path(store, "auto")
    path.parent.mkdir(parents=True)
    assert keep_busy(path, replace(DEVICE, bytes_per_second=7.0), float("nan"))
    assert silent_profile(store, clock=clock).bytes_per_second == 1
