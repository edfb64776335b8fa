"""Device profiles: measured once for a store and a device, and kept in the cache."""

from __future__ import annotations

import functools
import hashlib
import math
import os
import platform
import warnings
from pathlib import Path

import torch
from transformers.utils import logging

from sti_hf import native
from sti_hf.errors import ConfigurationError, ProfileError
from sti_hf.integrations.cache_files import alone, keep_file
from sti_hf.integrations.store_cache import cache_home
from sti_hf.integrations.store_model import load_encoder_on
from sti_hf.planning import DeviceProfile
from sti_hf.profiling.device import STEPS, MeasuredDevice, measure_device
from sti_hf.runtime.gemm import ComputePath
from sti_hf.shards.store import ShardStore

_of_this_process: dict[Path, DeviceProfile] = {}
"""Profiles that are not kept in the cache, by where they would be: of a busy machine, or the cache took no file."""


def device_profile(store: ShardStore, compute_dtype: str = "auto", *, measure: bool = False) -> DeviceProfile:
    """The device profile for a store, from the cache; measured, with a progress bar, where it is absent or cannot be
    used, or on demand. That takes seconds, in which other threads and processes wait for the result.

    What was measured while others kept the machine busy is used by this process only, and warned of.
    """
    path = device_profile_path(store, compute_dtype)
    profile = None if measure else _known(path, store, compute_dtype)
    if profile is not None:
        return profile
    with alone(path.parent):
        profile = None if measure else _known(path, store, compute_dtype, tell=True)
        return profile or _measured(store, compute_dtype, path)


def kept_profile_path(store: ShardStore, compute_dtype: str) -> Path | None:
    """Where the device profile that this process uses is kept for others; None where it is not."""
    path = device_profile_path(store, compute_dtype)
    return path if path not in _of_this_process and path.is_file() else None


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


def _known(path: Path, store: ShardStore, compute_dtype: str, tell: bool = False) -> DeviceProfile | None:
    """The profile that was measured already, if it can be used here; `tell` warns of one that cannot."""
    return _of_this_process.get(path) or _kept(path, store, compute_dtype, tell)


def _kept(path: Path, store: ShardStore, compute_dtype: str, tell: bool = False) -> DeviceProfile | None:
    if not os.path.lexists(path):
        return None
    try:
        return _read(path, store, compute_dtype)
    except Exception as error:  # whatever it is: there is a way to have a good one
        if tell:
            sentence = " ".join(str(error).split()) or type(error).__name__
            warnings.warn(f"{path} is measured again: {sentence}", stacklevel=5)
        return None


def _read(path: Path, store: ShardStore, compute_dtype: str) -> DeviceProfile:
    """The profile in a file. Raises `ProfileError`, or whatever reading may, where it is not one for this store and
    compute dtype on this machine."""
    if not path.is_file():  # a pipe would not end
        raise ProfileError("It is not a file.")
    profile = DeviceProfile.from_json(path.read_text(encoding="utf-8"))
    if not profile.rises:
        raise ProfileError("By it a layer takes no time, or less time with more tokens or slices.")
    if profile.widths[-1] != store.grid.slices or not profile.decompress_seconds.keys() >= set(store.fidelities):
        raise ProfileError("It was not measured at all slices and fidelities of this store.")
    if compute_dtype not in ("auto", profile.compute_dtype):
        raise ProfileError(f"It was measured in {profile.compute_dtype}, not in {compute_dtype}.")
    if not ComputePath(profile.compute_dtype, profile.gemm).works():
        raise ProfileError(f"This machine cannot compute in {profile.compute_dtype} by {profile.gemm}.")
    return profile


def _measured(store: ShardStore, compute_dtype: str, path: Path) -> DeviceProfile:
    with logging.tqdm(total=STEPS, desc="Profiling this device, once", leave=False) as bar:
        measured: MeasuredDevice = measure_device(
            store,
            functools.partial(load_encoder_on, store),
            compute_dtype=compute_dtype,
            rate_limit=rate_limit(),
            progress=lambda step: (bar.set_postfix_str(step), bar.update(1)),
        )
    if measured.busy or not keep_file(path, measured.profile.to_json()):
        _of_this_process[path] = measured.profile
    else:
        _of_this_process.pop(path, None)
    if measured.busy:
        stays = _kept(path, store, compute_dtype) is not None
        warnings.warn(
            "The machine was busy while this device was profiled, so the profile is used by this process only"
            + ("; the one that was kept before stays." if stays else " and measured again next time."),
            stacklevel=4,
        )
    return measured.profile


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()
