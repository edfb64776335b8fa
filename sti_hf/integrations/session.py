"""Opens sessions: a store with the device profile that its plans are made from."""

from __future__ import annotations

import functools
import hashlib
import os
import platform
from pathlib import Path

import torch
from transformers import AutoConfig, PreTrainedModel
from transformers.utils import logging

from sti_hf import native
from sti_hf.config import STIConfig
from sti_hf.integrations.checkpoint import cache_home, stock_class
from sti_hf.integrations.quantizer import loading
from sti_hf.planning import DeviceProfile, ExecutionPlan, make_plan
from sti_hf.profiling.device import measure_device
from sti_hf.runtime.gemm import ComputePath
from sti_hf.runtime.session import STISession
from sti_hf.shards.store import WORD_EMBEDDINGS, ShardStore

logger = logging.get_logger(__name__)


def open_session(store: ShardStore, config: STIConfig) -> STISession:
    """A session on `store`, reading already. Profiles the device first where that has not been done."""
    profile = device_profile(store, config.compute_dtype)
    path = ComputePath(profile.compute_dtype, profile.gemm)
    return STISession(store, config, functools.partial(plan_store, store, profile), path, rate_limit())


def plan_store(store: ShardStore, profile: DeviceProfile, config: STIConfig, tokens: int) -> ExecutionPlan:
    """The plan for a store, a configuration and a number of tokens."""
    decoders = [table for table in store.index.tables.values() if table.decoders]
    return make_plan(
        store.layouts,
        profile,
        target_latency=config.target_latency,
        preload_budget=config.preload_budget,
        seq_len=tokens,
        strategy=config.strategy,
        fidelity=config.fidelity,
        allocator=config.allocator,
        staging_budget=config.staging_budget,
        row_bytes=store.index.tables[WORD_EMBEDDINGS].row_bytes,
        extra_seconds=sum(profile.io_seconds(table.rows * table.row_bytes, 1) for table in decoders),
    )


def device_profile(store: ShardStore, compute_dtype: str = "auto", *, measure: bool = False) -> DeviceProfile:
    """The device profile for a store, from the cache; measured (seconds) where it is absent, or on demand."""
    path = profile_path(store, compute_dtype)
    if path.exists() and not measure:
        return DeviceProfile.from_json(path.read_text())
    logger.info(f"Profiling this device for {store.path}: this takes a few seconds, once.")
    profile = measure_device(
        store, functools.partial(load_model_on, store), compute_dtype=compute_dtype, rate_limit=rate_limit()
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    written = path.with_suffix(f".{os.getpid()}.tmp")
    written.write_text(profile.to_json())
    written.replace(path)
    return profile


def profile_path(store: ShardStore, compute_dtype: str) -> Path:
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
    return float(os.environ.get("STI_READ_RATE", "0"))


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor()


def load_model_on(store: ShardStore, session: STISession) -> PreTrainedModel:
    """The store's model, as the class it was sharded from, running from `session`."""
    config = AutoConfig.from_pretrained(store.path)
    with loading(session):
        return stock_class(config).from_pretrained(store.path)
