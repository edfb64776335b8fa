"""Drives the layers of a stock model by accelerate hooks: wait for a layer's shards, run it, release them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import numpy as np
from accelerate.hooks import ModelHook, add_hook_to_module
from torch import nn
from transformers import PreTrainedModel
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from sti_hf.architectures import Architecture
from sti_hf.planning import ExecutionPlan
from sti_hf.runtime.layers import Decompressor, ElasticLinear
from sti_hf.runtime.placement import matrix_tables
from sti_hf.runtime.precision import LayerPrecision
from sti_hf.runtime.streamer import ShardStreamer
from sti_hf.runtime.timeline import LayerTimes


class LayerHook(ModelHook):
    """Runs one layer as a step of the plan."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.step = 0
        self.heads: Sequence[int] = ()

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        self.scheduler.begin(self.step)
        args, kwargs = self.scheduler.precision.narrowed(args, kwargs)
        return self.scheduler.architecture.layer_inputs(args, kwargs, self.heads)

    def post_forward(self, module: nn.Module, output: Any) -> Any:
        output = self.scheduler.precision.widened(output)
        self.scheduler.end(self.step)
        return output


class Scheduler:
    """Makes a model's layers execute a plan, and keeps the times."""

    def __init__(
        self, model: PreTrainedModel, architecture: Architecture, streamer: ShardStreamer, decompressor: Decompressor
    ) -> None:
        base: Any = model.base_model
        self.architecture, self.streamer, self.decompressor = architecture, streamer, decompressor
        self.precision = LayerPrecision(decompressor.path.torch_dtype)
        path, _, self._name = architecture.layers.rpartition(".")
        self._parent = base.get_submodule(path)
        self._all_layers: Any = base.get_submodule(architecture.layers)
        self._executed: Any = self._all_layers
        self._linears: Any = architecture.linears(model)
        self._bound: list[ElasticLinear] = []
        self._wait_for_all = False
        self._tables: list[dict[str, np.ndarray]] = []
        self._bits = np.empty((0, 0), dtype=np.int64)
        self.times: list[LayerTimes] = []
        # Transformers puts its capture hooks (output_hidden_states) on the layers there are at the first capture.
        maybe_install_capturing_hooks(base)
        for layer in self._all_layers.children():
            add_hook_to_module(layer, LayerHook(self))

    def apply(self, plan: ExecutionPlan) -> None:
        """Binds the layers that `plan` executes to the pieces that the streamer placed for it."""
        placement = self.streamer.placement
        assert placement is not None
        store = placement.store
        slices = plan.submodel[1]
        self._bits, self._tables = plan.bits.copy(), []
        self.release()  # layers that this plan leaves out would keep the last one's buffers
        for step, placed in enumerate(placement.layers):
            layer: Any = self._all_layers[placed.layer]
            self.architecture.prepare_layer(layer, slices)
            tables = matrix_tables(store, placed, plan.bits[placed.layer])
            self._tables.append(tables)
            for name, linear in self._linears[placed.layer].items():
                linear.bind(self.decompressor, tables[name], slices * store.grid.matrix_rows[name])
                self._bound.append(linear)
            layer._hf_hook.step = step
            layer._hf_hook.heads = store.index.slice_order[placed.layer][:slices]
        self._executed = nn.ModuleList(self._all_layers[layer] for layer in plan.layers)
        self._wait_for_all = plan.strategy == "load_exec"

    def release(self) -> None:
        """Lets the layers go of all buffers."""
        for linear in self._bound:
            linear.unbind()
        self._bound = []

    def enter(self) -> None:
        """Leaves the model with the layers of the plan, for one forward."""
        self.times = []
        setattr(self._parent, self._name, self._executed)

    def leave(self) -> None:
        """Gives the model all its layers back."""
        setattr(self._parent, self._name, self._all_layers)
        self.precision.forget()

    def begin(self, step: int) -> None:
        """Waits for the shards of a step."""
        last = len(self._executed) - 1
        waited = sum(map(self.streamer.wait, range(last + 1))) if self._wait_for_all and step == 0 else 0.0
        waited += self.streamer.wait(step)
        self._run_at(step, self.streamer.fidelities(step))
        self.decompressor.seconds = 0.0
        self.times.append(LayerTimes(start=time.perf_counter(), wait=waited))

    def _run_at(self, step: int, bits: np.ndarray | None) -> None:
        """Lets a step run at these fidelities, int64 `[M]`; None: as it is bound."""
        placement = self.streamer.placement
        assert placement is not None
        placed = placement.layers[step]
        if bits is not None and (bits != self._bits[placed.layer]).any():
            for name, table in matrix_tables(placement.store, placed, bits).items():
                self._tables[step][name][:] = table  # the linear layers have views of it
            self._bits[placed.layer] = bits

    @property
    def bits(self) -> np.ndarray:
        """int64 `[N, M]`: the fidelities at which layers last ran, 0 = not run."""
        return self._bits.copy()

    def end(self, step: int) -> None:
        """Releases the shards of a step."""
        self.streamer.release(step)
        times = self.times[-1]
        times.end = time.perf_counter()
        times.decompress = self.decompressor.seconds
