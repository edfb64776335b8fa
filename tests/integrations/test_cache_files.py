"""One process measures and the others wait for it; a cache that cannot be written to stops nobody."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import subprocess
import sys
import threading
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel

from sti_hf import DeviceProfile, ShardStore
from sti_hf.integrations import cache_files, device_profiles
from sti_hf.integrations.device_profiles import device_profile, device_profile_path, kept_profile_path
from sti_hf.profiling.device import MeasuredDevice
from sti_hf.shards.unfinished import SUFFIX
from tests.integrations.checkpoints import DEVICE
from tests.integrations.measuring import Machine, put, silent_profile

UNWRITABLE = r"The cache .* cannot be written to \(.*\), so device profiles and plans are made again by every process"


@pytest.fixture
def store(classifier_store: Path) -> ShardStore:
    return ShardStore.open(classifier_store)


# A cache that cannot be written to.


def opened_twice(store: ShardStore) -> str:
    """The one warning of opening a model twice, with a plan and a profile to keep."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(2):
            model = AutoModel.from_pretrained(store.path, sti_config={"target_latency": 1.0})
            assert model(input_ids=torch.tensor([[1, 2, 3]])).last_hidden_state.isfinite().all()
            model.sti.close()
    (message,) = [str(each.message) for each in caught if "cache" in str(each.message)]
    return message


def test_a_file_in_the_place_of_the_home(store: ShardStore, machine: Machine, own_home: Path) -> None:
    own_home.write_text("in the way")
    message = opened_twice(store)
    assert re.match(UNWRITABLE, message)
    assert str(own_home) in message
    assert machine.calls == ["auto"], "measured once for this process"
    assert own_home.read_text() == "in the way"
    assert kept_profile_path(store, "auto") is None


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOSPC, errno.EDQUOT, errno.EIO])
@pytest.mark.parametrize("call", ["mkdir", "open", "write_text", "replace"])
def test_a_home_that_takes_nothing(
    store: ShardStore, machine: Machine, own_home: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int
) -> None:
    works = getattr(Path, call)

    def fails(path: Path, *arguments: Any, **options: Any) -> Any:
        if path.is_relative_to(own_home):
            raise OSError(number, os.strerror(number), str(path))
        return works(path, *arguments, **options)

    monkeypatch.setattr(Path, call, fails)
    message = opened_twice(store)
    assert re.match(UNWRITABLE, message)
    assert os.strerror(number) in message
    assert machine.calls == ["auto"]
    assert not [path for path in own_home.rglob("*") if path.is_file()], "nothing half-written is left"


# One measures, the others wait.


def test_threads_measure_once(store: ShardStore, own_home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun, go_on, calls, found = threading.Event(), threading.Event(), [], []

    def measure(*arguments: Any, **options: Any) -> MeasuredDevice:
        calls.append(1)
        begun.set()
        assert go_on.wait(60)
        return MeasuredDevice(DEVICE, busy=False)

    monkeypatch.setattr(device_profiles, "measure_device", measure)
    threads = [threading.Thread(target=lambda: found.append(device_profile(store))) for _ in range(4)]
    for thread in threads:
        thread.start()
    assert begun.wait(60)
    go_on.set()
    for thread in threads:
        thread.join(60)
    assert found == [DEVICE] * 4
    assert calls == [1]


HOLDER = """
import fcntl, os, sys
folder = os.open(sys.argv[1], os.O_RDONLY)
fcntl.flock(folder, fcntl.LOCK_EX)
print("locked", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("measured_by_the_other", [True, False], ids=["measured", "killed"])
def test_waits_for_another_process(
    store: ShardStore, machine: Machine, monkeypatch: pytest.MonkeyPatch, measured_by_the_other: bool
) -> None:
    path = device_profile_path(store, "auto")
    path.parent.mkdir(parents=True)
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(path.parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "locked\n"
        waits, flock = threading.Event(), fcntl.flock

        def waiting(descriptor: int, operation: int) -> None:
            if operation & fcntl.LOCK_EX and os.path.samestat(os.fstat(descriptor), path.parent.stat()):
                waits.set()
            flock(descriptor, operation)

        monkeypatch.setattr(cache_files.fcntl, "flock", waiting)
        found: list[DeviceProfile] = []
        thread = threading.Thread(target=lambda: found.append(device_profile(store)))
        thread.start()
        assert waits.wait(60)
        assert machine.calls == []
        if measured_by_the_other:
            put(path, DEVICE.to_json())
        holder.kill()
        thread.join(60)
    assert machine.calls == ([] if measured_by_the_other else ["auto"])
    assert found == [DEVICE if measured_by_the_other else replace(DEVICE, bytes_per_second=1.0)]


def test_a_process_that_keeps_the_lock_does_not_stop_others(
    store: ShardStore, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One that was stopped, say.
    monkeypatch.setattr(cache_files, "LONGEST_WAIT", 0.0)
    folder = device_profile_path(store, "auto").parent
    folder.mkdir(parents=True)
    holder = os.open(folder, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        with pytest.warns(UserWarning, match=f"Another process has kept {folder} locked for long"):
            first = device_profile(store)
    finally:
        os.close(holder)
    assert silent_profile(store) == first
    assert machine.calls == ["auto"]


def test_file_systems_without_locks(store: ShardStore, machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", no_locks)
    first = silent_profile(store)
    assert silent_profile(store) == first
    assert machine.calls == ["auto"]


KILLED = """
import os, signal, sys
from pathlib import Path
from sti_hf.integrations.cache_files import keep_file
Path.replace = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
keep_file(Path(sys.argv[1]), "{}")
"""


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    path = tmp_path / "plans" / "plan.json"
    assert subprocess.run([sys.executable, "-c", KILLED, str(path)]).returncode < 0
    (left,) = path.parent.iterdir()
    assert left.name.endswith(SUFFIX)
    assert cache_files.keep_file(path, "{}")
    assert list(path.parent.iterdir()) == [path]
