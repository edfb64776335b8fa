"""Opens sessions: a store with the device profile that its plans are made from."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging

from sti_hf import native
from sti_hf.config import STIConfig
from sti_hf.errors import ConfigurationError
from sti_hf.integrations.building import build_model
from sti_hf.integrations.model_classes import stock_class
from sti_hf.integrations.store_cache import cache_home
from sti_hf.integrations.store_planner import StorePlanner
from sti_hf.integrations.structure import check_structure
from sti_hf.planning import DeviceProfile
from sti_hf.profiling.device import STEPS, measure_device
from sti_hf.runtime.gemm import ComputePath
from sti_hf.runtime.session import STISession
from sti_hf.shards.resident import read_resident
from sti_hf.shards.store import ShardStore
from sti_hf.shards.whole import write_whole


def open_session(store: ShardStore, config: STIConfig, model_class: type[PreTrainedModel] | None = None) -> STISession:
    """A session on `store` for a model of `model_class` (None: of the class that was sharded), reading already.
    Profiles the device first where that has not been done."""
    profile = device_profile(store, config.compute_dtype)
    path = ComputePath(profile.compute_dtype, profile.gemm)
    return STISession(store, config, StorePlanner(store, profile, model_class), path, rate_limit())


def device_profile(store: ShardStore, compute_dtype: str = "auto", *, measure: bool = False) -> DeviceProfile:
    """The device profile for a store, from the cache; measured, with a progress bar, where it is absent or cannot be
    read, or on demand. That takes seconds."""
    path = device_profile_path(store, compute_dtype)
    if path.exists() and not measure:
        try:
            return DeviceProfile.from_json(path.read_text())
        except ValueError as error:
            warnings.warn(f"{path} is measured again: {error}", stacklevel=2)
    with logging.tqdm(total=STEPS, desc="Profiling this device, once", leave=False) as bar, _quiet_loading():
        profile = measure_device(
            store,
            functools.partial(load_model_on, store),
            compute_dtype=compute_dtype,
            rate_limit=rate_limit(),
            progress=lambda step: (bar.set_postfix_str(step), bar.update(1)),
        )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, profile.to_json().encode())
    return profile


@contextmanager
def _quiet_loading() -> Iterator[None]:
    """Hides the progress of the models that are loaded in this block."""
    enabled = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if enabled:
            logging.enable_progress_bar()


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
        store.index.quantizer,
        compute_dtype,
    )
    return cache_home() / "profiles" / f"{hashlib.sha256('|'.join(device).encode()).hexdigest()[:24]}.json"


def rate_limit() -> float:
    """Bytes a second at which `$STI_READ_RATE` paces all reading; 0 without it. For benchmarks, or to leave room."""
    rate = os.environ.get("STI_READ_RATE", "0")
    try:
        return float(rate)
    except ValueError:
        raise ConfigurationError(f"STI_READ_RATE must be a number of bytes a second, not {rate!r}.") from None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def load_model_on(store: ShardStore, session: STISession) -> PreTrainedModel:
    """The store's model, as the class it was sharded from, running from `session`."""
    config = AutoConfig.from_pretrained(store.path)
    model_class = stock_class(config)
    check_structure(model_class, config, store)
    model, _ = build_model(model_class, config, session, functools.partial(read_resident, store))
    return model
