"""Stores of tiny models, plans with any fidelities, and models that run them."""

from __future__ import annotations

import functools
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import PreTrainedModel

from sti_hf import STIConfig
from sti_hf.integrations.store_model import load_model_on
from sti_hf.model import get_architecture
from sti_hf.model.fused import split_fused
from sti_hf.planning import DeviceProfile, ExecutionPlan, OnePlan, PlanRequest, Workload, make_plan, predict_latency
from sti_hf.planning.refinement import PLANE_FIDELITIES
from sti_hf.planning.staging import MINIMUM_READ_AHEAD
from sti_hf.planning.timeline import Timeline
from sti_hf.runtime.gemm import ComputePath
from sti_hf.runtime.session import STISession
from sti_hf.shards.partition import join_layer, split_layer
from sti_hf.shards.quantizers import get_quantizer
from sti_hf.shards.sharding import write_store
from sti_hf.shards.store import ShardStore
from tests.planning.problems import make_profile

EXACT = ComputePath("float32", "default")


def store_of(model: PreTrainedModel, folder: Path, quantizer: str = "lloyd", **options: Any) -> ShardStore:
    """Shards a model."""
    return write_store(model, folder, quantizer=get_quantizer(quantizer), quantizer_name=quantizer, **options)


def random_bits(store: ShardStore, seed: int, layers: int | None = None, slices: int | None = None) -> np.ndarray:
    """int64 `[N, M]`: random fidelities of the first layers and slices, 0 elsewhere."""
    grid = store.grid
    bits = np.random.default_rng(seed).choice(store.fidelities, (grid.layers, grid.slices))
    bits[layers or grid.layers :] = 0
    bits[:, slices or grid.slices :] = 0
    return bits


def plan_of(
    store: ShardStore,
    bits: np.ndarray,
    preload: float = 0.0,
    *,
    seed: int = 0,
    staging_bytes: int | None = None,
    strategy: str = "sti",
) -> ExecutionPlan:
    """A plan with these fidelities; each piece is preloaded with probability `preload`."""
    random = np.random.default_rng(seed)
    layers = tuple(np.flatnonzero(bits.any(axis=1)).tolist())
    needed = np.stack([layout.pieces_of(row) for layout, row in zip(store.layouts, bits)])
    preloaded = needed & (random.random(needed.shape) < preload)
    read = [int(store.layouts[layer].read_ranges(needed[layer] & ~preloaded[layer])[:, 1].sum()) for layer in layers]
    kept = [int(store.layouts[layer].read_ranges(preloaded[layer])[:, 1].sum()) for layer in layers]
    if staging_bytes is None:
        staging_bytes = sum(read) if strategy == "load_exec" else max(read) + MINIMUM_READ_AHEAD
    zero = np.zeros(len(layers))
    return ExecutionPlan(
        strategy=strategy,
        allocator=None,
        fidelities=store.fidelities,
        target_latency=1.0,
        preload_budget=sum(kept),
        workload=Workload(16),
        layers=layers,
        bits=bits,
        preloaded_pieces=preloaded,
        preload_bytes=sum(kept),
        streamed_bytes=sum(read),
        staging_bytes=staging_bytes,
        timeline=Timeline(zero, zero, zero, zero, zero, 0.0),
        first_latency=0.0,
        distortion=None,
    )


def device(**changes: Any) -> DeviceProfile:
    """A slow device: 2 MB/s, 1 ms a layer."""
    slow = {
        "bytes_per_second": 2e6,
        "tokens": (16, 128),
        "layer_seconds": ((5e-4, 1e-3), (1e-3, 2e-3)),
        "decompress_seconds": {bits: 1e-10 for bits in (2, 3, 4, 5, 6, 32)},
        "before_seconds": (5e-4, 5e-4),
        "after_seconds": (5e-4, 5e-4),
        "compute_dtype": "float32",
        "gemm": "default",
    }
    return make_profile(**{**slow, **changes})


class Planned:
    """A `Planner` of real plans for a device, by the paper's rule for submodels."""

    def __init__(self, store: ShardStore, profile: DeviceProfile) -> None:
        self.store, self.profile = store, profile

    def plan(self, config: STIConfig, workload: Workload, submodel: tuple[int, int] | None = None) -> ExecutionPlan:
        """By T, S and staging budget of the configuration, without embedding rows."""
        return make_plan(
            PlanRequest(
                self.store.layouts,
                self.profile,
                config.target_latency,
                config.preload_budget,
                workload,
                submodels="any",
                submodel=submodel,
                staging_budget=config.staging_budget,
                fidelities=PLANE_FIDELITIES if config.refine else (),
            )
        )

    def workload(self, config: STIConfig, tokens: int | None = None) -> Workload:
        """As for texts."""
        return Workload(Workload.bucket(tokens or config.seq_len), config.batch_size)

    def latency(self, plan: ExecutionPlan, workload: Workload) -> float:
        """Predicted seconds of a plan with another workload."""
        request = PlanRequest(self.store.layouts, self.profile, plan.target_latency, plan.preload_budget, workload)
        return predict_latency(request, plan)


def running(store: ShardStore, plan: ExecutionPlan, path: ComputePath = EXACT) -> Any:
    """The store's model, executing `plan`."""
    return load_model_on(store, STISession(store, STIConfig(), OnePlan(plan), path))


class Plans:
    """A planner that is a function."""

    def __init__(self, plan: Callable[[STIConfig, Workload], ExecutionPlan]) -> None:
        self._plan = plan

    def plan(self, config: STIConfig, workload: Workload, submodel: tuple[int, int] | None = None) -> ExecutionPlan:
        """What it gives, whatever the submodel that is asked for."""
        return self._plan(config, workload)

    def workload(self, config: STIConfig, tokens: int | None = None) -> Workload:
        """As for texts."""
        return Workload(Workload.bucket(tokens or config.seq_len), config.batch_size)

    def latency(self, plan: ExecutionPlan, workload: Workload) -> float:
        """As predicted for the workload of the plan."""
        return plan.predicted_latency


def planned_by(store: ShardStore, plan: Callable[[STIConfig, Workload], ExecutionPlan], **fields: Any) -> Any:
    """The store's model, with plans by this function."""
    return load_model_on(store, STISession(store, STIConfig(**fields), Plans(plan), EXACT))


def planned(store: ShardStore, config: STIConfig) -> Any:
    """The store's model, with real plans for the slow device."""

    def plan(wanted: STIConfig, workload: Workload) -> ExecutionPlan:
        return _planned_once(store, wanted.target_latency, wanted.preload_budget, workload)

    return load_model_on(store, STISession(store, config, Plans(plan), EXACT))


@functools.lru_cache(maxsize=64)
def _planned_once(store: ShardStore, target_latency: float, preload_budget: int, workload: Workload) -> ExecutionPlan:
    config = STIConfig(target_latency=target_latency, preload_budget=preload_budget)
    return Planned(store, device()).plan(config, workload)


def stock_with_plan_weights(model: PreTrainedModel, store: ShardStore, bits: np.ndarray) -> PreTrainedModel:
    """Writes the weights of these fidelities, as the quantizer itself dequantizes them, into a stock model.

    Every shard must run.
    """
    architecture = get_architecture(model.config)
    quantizer = get_quantizer(store.index.quantizer)
    split_fused(model, architecture)
    layers: Any = model.base_model.get_submodule(architecture.layers)
    for layer, module in enumerate(layers):
        linears = {matrix.name: module.get_submodule(matrix.module) for matrix in architecture.matrices}
        weights = {name: linear.weight.detach() for name, linear in linears.items()}
        order = range(store.grid.slices)
        shards = split_layer(weights, architecture.matrices, store.grid, order)
        quantized = quantizer.quantize_layer(layer, shards.float(), store.grid)
        for index in order:
            if bits[layer, index] != 32:
                shards[index] = quantized.dequantize(int(bits[layer, index]))[index]
        with torch.no_grad():
            for name, weight in join_layer(shards, architecture.matrices, store.grid).items():
                linears[name].weight.copy_(weight)
    return model


def damaged(store: ShardStore, folder: Path, layer: int, kind: int) -> ShardStore:
    """A copy of a store with a wrong byte in one plane of a layer's first slice."""
    layout = store.layouts[layer]
    shutil.copytree(store.path, folder)
    with (folder / store.stack.layer_files[layer]).open("r+b") as file:
        file.seek(int(layout.piece_offset[kind, 0] + layout.piece_bytes[kind, 0] // 2))
        byte = file.read(1)[0]
        file.seek(-1, 1)
        file.write(bytes([byte ^ 1]))
    return ShardStore.open(folder)


def logits_of(output: Any) -> torch.Tensor:
    """The first floating tensor of a model's output."""
    return next(value for value in output.to_tuple() if isinstance(value, torch.Tensor) and value.is_floating_point())


def fail_twice(model: Any, inputs: dict[str, torch.Tensor]) -> None:
    """One forward that fails before the first layer, and one that fails in the second."""
    with pytest.raises(IndexError, match="Token ids must be 0 to 210"):
        model(input_ids=torch.tensor([[5, 211]]))
    layer = model.base_model.encoder.layer[1]
    handle = layer.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("stop here")))
    with pytest.raises(RuntimeError, match="stop here"):
        model(**inputs)
    handle.remove()
