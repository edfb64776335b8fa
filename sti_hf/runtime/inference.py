"""One pass through the layers of a plan, from its beginning to its end."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from torch import Tensor, nn

from sti_hf.errors import UnsupportedUseError
from sti_hf.model import Architecture
from sti_hf.planning import Workload
from sti_hf.runtime.blocks import Block
from sti_hf.runtime.precision import LayerPrecision
from sti_hf.runtime.prepared import PreparedStep
from sti_hf.runtime.reads.streamer import ShardStreamer
from sti_hf.runtime.timeline import LayerTimes, RunTimeline, run_timeline


class Inference:
    """Runs the steps of a plan in their order, each once: waits for its shards, lets it compute, releases them.

    It belongs to the thread that began it. `entered` tells whether the module that has the layers has begun.
    `when_read` is called as soon as the shards of all steps are in memory.
    """

    def __init__(
        self,
        architecture: Architecture,
        streamer: ShardStreamer,
        workload: Workload,
        begun: float,
        row_bytes: int,
        when_read: Callable[[], object] = lambda: None,
    ) -> None:
        self.prepared, self.workload = streamer.prepared, workload
        self._thread = os.getpid(), threading.get_ident()
        self.plan, self.path = self.prepared.plan, self.prepared.path
        self.entered = False
        self.embedding_seconds = 0.0
        self._architecture, self._streamer = architecture, streamer
        self._begun, self._row_bytes, self._when_read = begun, row_bytes, when_read
        self._precision = LayerPrecision(self.path.torch_dtype)
        self._running: PreparedStep | None = None
        self._bits = np.zeros_like(self.plan.bits)
        self._times: list[LayerTimes] = []
        streamer.start()
        streamer.hold_to(begun)

    def is_of_this_thread(self) -> bool:
        """Whether the calling thread, of this process, began it."""
        return self._thread == (os.getpid(), threading.get_ident())

    @property
    def layers(self) -> tuple[int, ...]:
        """The layers that run, in order."""
        return self.plan.layers

    @property
    def finished(self) -> bool:
        """Whether every step has run."""
        return len(self._times) == len(self.layers) and self._running is None

    def begin_layer(
        self, module: nn.Module, layer: int, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Waits for the shards of a layer, which must be the next; returns what to call it with."""
        step = len(self._times)
        if self._running is not None or step >= len(self.layers) or self.layers[step] != layer:
            raise UnsupportedUseError(
                f"Layer {layer} was called out of its turn: a model that runs from its store runs its layers in "
                "order, each once; call the model."
            )
        waited = self._wait_for_all() if step == 0 and self.plan.strategy == "load_exec" else 0.0
        waited += self._streamer.wait(step)
        if step == len(self.layers) - 1:
            self._when_read()
        prepared = self.prepared.step(step)
        self._bits[layer] = prepared.run_at(self._streamer.fidelities(step))
        self._times.append(LayerTimes(start=time.perf_counter(), wait=waited))
        self._running = prepared
        args, kwargs = self._precision.narrowed(args, kwargs)
        if prepared.heads is None:
            return args, kwargs
        self._architecture.prepare_layer(module, prepared.slices)
        return self._architecture.layer_inputs(args, kwargs, prepared.heads)

    def end_layer(self, output: Any) -> Any:
        """Releases the shards of the layer that has run; returns its output in the model's dtype."""
        output = self._precision.widened(output)
        self._running = None
        self._streamer.release(len(self._times) - 1)
        self._times[-1].end = time.perf_counter()
        return output

    def blocks(self, layer: int, matrix: str) -> list[Block]:
        """What a matrix of the layer that runs is multiplied by."""
        if self._running is None or self._running.layer != layer:
            raise UnsupportedUseError(
                f"A part of layer {layer} was called by itself, and its weights are in memory only while the model "
                "runs: call the model."
            )
        return self._running.blocks[matrix]

    def decompress(self, block: Block) -> Tensor:
        """The weight of a block `[rows, row_length]`, as stored, in the working buffer until the next one is."""
        start = time.perf_counter()
        block.decompression.run(self.prepared.threads)
        self._times[-1].decompress += time.perf_counter() - start
        return block.weight

    def _wait_for_all(self) -> float:
        return sum(map(self._streamer.wait, range(len(self.layers))))

    def end(self) -> None:
        """Ends the reading; what was read ahead by a pass that did not come to its end is kept as far as checked."""
        if self.finished and self._times:
            self._streamer.finish(self._times[-1].start)
        else:
            self._streamer.stop()

    def timeline(self, row_bytes: int, predicted: float) -> RunTimeline:
        """What it took. `row_bytes` were read by row until now; `predicted` seconds were expected."""
        return run_timeline(
            self._times,
            self._streamer.step_times(len(self._times)),
            begun=self._begun,
            ended=time.perf_counter(),
            tokens=self.workload.all_tokens,
            embedding=self.embedding_seconds,
            bytes_read=self._streamer.bytes_read,
            row_bytes_read=row_bytes - self._row_bytes,
            bits=self._bits,
            predicted=predicted,
            target_latency=self.plan.target_latency,
        )
