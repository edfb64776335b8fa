"""Device profiles: measured once for a store and a device, and kept in the cache."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import platform
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers.utils import logging

from sti_hf import native
from sti_hf.errors import ConfigurationError, ProfileError
from sti_hf.integrations.busy_profiles import WARNING, busy_path, busy_profile, drop_busy, keep_busy
from sti_hf.integrations.cache_files import alone, keep_file
from sti_hf.integrations.store_cache import cache_home
from sti_hf.integrations.store_model import load_encoder_on
from sti_hf.planning import DeviceProfile
from sti_hf.profiling.device import STEPS, MeasuredDevice, measure_device
from sti_hf.runtime.gemm import ComputePath
from sti_hf.shards.store import ShardStore

BY_THIS_PROCESS = "The machine was busy while this device was profiled, so the profile is used by this process only"

_of_this_process: dict[Path, DeviceProfile] = {}
"""Profiles that are not kept for good, by where they would be: of a busy machine, or the cache took no file."""


def device_profile(
    store: ShardStore,
    compute_dtype: str = "auto",
    *,
    measure: bool = False,
    clock: Callable[[], float] = time.time,
) -> DeviceProfile:
    """The device profile for a store, from the cache; measured, with a progress bar, where it is absent or cannot be
    used, or on demand. That takes seconds, in which other threads and processes wait for the result.

    What was measured while others kept the machine busy is used for an hour, and warned of in every process. `clock`
    tells seconds since the epoch.
    """
    cached = _Cached(device_profile_path(store, compute_dtype), store, compute_dtype, clock)
    profile = None if measure else cached.known()
    if profile is not None:
        return profile
    with alone(cached.path.parent):
        profile = None if measure else cached.known(tell=True)
        return profile or _measured(cached)


def kept_profile_path(store: ShardStore, compute_dtype: str) -> Path | None:
    """Where the device profile that this process uses is kept for others; None where it is not."""
    path = device_profile_path(store, compute_dtype)
    of_free_machine = path.is_file()
    if path not in _of_this_process:
        return path if of_free_machine else None
    busy = busy_path(path)
    return busy if busy.is_file() and not of_free_machine else None


def device_profile_path(store: ShardStore, compute_dtype: str) -> Path:
    """Where the device profile for a store is cached: one for every store, disk, processor and compute dtype."""
    device = (
        platform.machine(),
        _processor(),
        str(os.cpu_count()),
        str(torch.get_num_threads()),
        torch.__version__,
        native.isa(),
        str(store.path.stat().st_dev),
        str(rate_limit()),
        store.index.fingerprint,
        str(store.stack_name),
        store.index.quantizer,
        compute_dtype,
    )
    return cache_home() / "profiles" / f"{hashlib.sha256('|'.join(device).encode()).hexdigest()[:24]}.json"


def rate_limit() -> float:
    """Bytes a second at which `$STI_READ_RATE` paces all reading; 0 without it. For benchmarks, or to leave room.

    Raises `ConfigurationError` unless it is a finite number of at least 0.
    """
    text = os.environ.get("STI_READ_RATE", "0")
    try:
        rate = float(text)
    except ValueError:
        rate = math.nan
    if not 0 <= rate < math.inf:
        raise ConfigurationError(
            f"STI_READ_RATE must be a number of bytes a second, not {text!r}; 0 or none does not pace the reading."
        )
    return rate


@dataclass(frozen=True)
class _Cached:
    """What the cache may have for a store and compute dtype: a profile at `path`, beside it one of a busy machine."""

    path: Path
    store: ShardStore
    compute_dtype: str
    clock: Callable[[], float]

    def known(self, tell: bool = False) -> DeviceProfile | None:
        """The profile that was measured already, if it can be used here; `tell` warns of one that cannot."""
        profile = _of_this_process.get(self.path) or self.kept(tell)
        if profile is None:
            profile = self._usable(busy_path(self.path), lambda text: busy_profile(text, self.clock()), tell)
            if profile is not None:
                _of_this_process[self.path] = profile
                warnings.warn(WARNING, stacklevel=4)
        return profile

    def kept(self, tell: bool = False) -> DeviceProfile | None:
        """The profile of a free machine."""
        return self._usable(self.path, DeviceProfile.from_json, tell)

    def _usable(self, path: Path, parse: Callable[[str], DeviceProfile | None], tell: bool) -> DeviceProfile | None:
        if not os.path.lexists(path):
            return None
        try:
            if not path.is_file():  # a pipe would not end
                raise ProfileError("It is not a file.")
            profile = parse(path.read_text(encoding="utf-8"))
            if profile is not None:
                self._check(profile)
            return profile
        except Exception as error:  # whatever it is: there is a way to have a good one
            if tell:
                sentence = " ".join(str(error).split()) or type(error).__name__
                warnings.warn(f"{path} is measured again: {sentence}", stacklevel=6)
            return None

    def _check(self, profile: DeviceProfile) -> None:
        """Raises `ProfileError` where it is not one for this store and compute dtype on this machine."""
        store = self.store
        if not profile.rises:
            raise ProfileError("By it a layer takes no time, or less time with more tokens or slices.")
        if profile.widths[-1] != store.grid.slices or not profile.decompress_seconds.keys() >= set(store.fidelities):
            raise ProfileError("It was not measured at all slices and fidelities of this store.")
        if self.compute_dtype not in ("auto", profile.compute_dtype):
            raise ProfileError(f"It was measured in {profile.compute_dtype}, not in {self.compute_dtype}.")
        if not ComputePath(profile.compute_dtype, profile.gemm).works():
            raise ProfileError(f"This machine cannot compute in {profile.compute_dtype} by {profile.gemm}.")


def _measured(cached: _Cached) -> DeviceProfile:
    with logging.tqdm(total=STEPS, desc="Profiling this device, once", leave=False) as bar:
        measured: MeasuredDevice = measure_device(
            cached.store,
            functools.partial(load_encoder_on, cached.store),
            compute_dtype=cached.compute_dtype,
            rate_limit=rate_limit(),
            progress=lambda step: (bar.set_postfix_str(step), bar.update(1)),
        )
    if measured.busy:
        _note_busy(cached, measured.profile)
    elif keep_file(cached.path, measured.profile.to_json()):
        _of_this_process.pop(cached.path, None)
        drop_busy(cached.path)
    else:
        _of_this_process[cached.path] = measured.profile
    return measured.profile


def _note_busy(cached: _Cached, profile: DeviceProfile) -> None:
    """Keeps a profile of a busy machine for an hour, unless there is one of a free machine, and warns of it."""
    _of_this_process[cached.path] = profile
    if cached.kept() is not None:
        warning = f"{BY_THIS_PROCESS}; the one that was kept before stays."
    elif keep_busy(cached.path, profile, cached.clock()):
        warning = WARNING
    else:
        warning = f"{BY_THIS_PROCESS} and measured again next time."
    warnings.warn(warning, stacklevel=5)


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
