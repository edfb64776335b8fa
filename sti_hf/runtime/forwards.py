"""What a call of a model, of the module that has its layers, and of a layer means: which inference it is part of."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from sti_hf.errors import UnsupportedUseError
from sti_hf.runtime.engine import Engine
from sti_hf.runtime.generation import Continued
from sti_hf.runtime.inference import Inference
from sti_hf.runtime.inputs import (
    cached_submodel,
    cached_tokens,
    check_depth,
    check_inputs,
    check_length,
    workload_of,
    workload_of_states,
)
from sti_hf.runtime.reads.tables import Tables
from sti_hf.runtime.timeline import RunTimeline


class Forwards:
    """What the guarded modules in a model call. They hold this, and it holds none of them.

    `engine` runs the layers; the one that follows it, if one does, the strips of the vocabulary.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine

    def run_model(self, module: nn.Module, inputs: Mapping[str, Any], forward: Callable[[], Any]) -> Any:
        """A forward of the whole model around its base model."""
        check_inputs(inputs)
        with self._turn_of(module):
            return forward()

    def run_base(self, module: nn.Module, inputs: Mapping[str, Any], forward: Callable[[], Any]) -> Any:
        """A forward of the base model: one inference."""
        check_inputs(inputs)
        with self._turn_of(module):
            architecture = self.engine.architecture
            grid = self.engine.grid
            check_depth(module.config, grid.layers)
            workload = workload_of(module.config, architecture, inputs)
            check_length(module, architecture, inputs, workload)
            with self.engine.inference(workload, self._continued(inputs)):
                output = forward()
            self._note_cache(inputs, output)
            return output

    def run_stack(self, module: nn.Module, inputs: Mapping[str, Any], forward: Callable[[], Any]) -> Any:
        """A forward of the module that has the layers: a part of the base model's, or an inference of its own."""
        with self._turn_of(module):
            running = self.engine.current
            if running is not None and not running.entered:
                running.entered = True
                return forward()
            if running is None and inputs.get(self.engine.architecture.main_inputs[0]) is not None:
                return self.run_base(module, inputs, forward)  # it embeds, too, and was called in place of the base
            workload = workload_of_states(inputs.get("hidden_states", inputs.get("inputs_embeds")))
            with self.engine.inference(workload, self._continued(inputs)) as own:
                own.entered = True
                output = forward()
            self._note_cache(inputs, output)
            return output

    def run_layer(
        self, module: nn.Module, layer: int, args: Any, kwargs: dict[str, Any], forward: Callable[..., Any]
    ) -> Any:
        """A forward of a layer: a step of the inference that runs."""
        inference = self.running()
        _refuse_training(module)
        args, kwargs = inference.begin_layer(module, layer, args, kwargs)
        return inference.end_layer(forward(*args, **kwargs))

    @property
    def strips(self) -> Engine | None:
        """What makes logits from the strips of the vocabulary; None where the table of full weights does."""
        return None if self.engine.streamer.prepared.plan.is_full else self.engine.following

    @property
    def tables(self) -> Tables:
        """The tables of the store."""
        return self.engine.tables

    def executed_layers(self) -> tuple[int, ...] | None:
        """The layers that the inference of this thread runs; None where there is none."""
        return None if self.engine.current is None else self.engine.current.layers

    def running(self) -> Inference:
        """The inference of this thread. Raises `UnsupportedUseError` where there is none."""
        inference = self.engine.current
        if inference is None:
            self.engine.guard.check_open()
            raise UnsupportedUseError(
                "A layer was called by itself, and its weights are in memory only while the model runs: call the "
                "model, or the module that has the layers."
            )
        return inference

    def note_embedding(self, seconds: float) -> None:
        """Takes note of the seconds that reading embedding rows took."""
        if self.engine.current is not None:
            self.engine.current.embedding_seconds += seconds

    def _continued(self, inputs: Mapping[str, Any]) -> Continued | None:
        """What a forward goes on from: the key/value cache among its inputs, unless that is empty."""
        cache = inputs.get("past_key_values")
        submodel = cached_submodel(cache, self.engine.grid)
        if submodel is None:
            return None
        return Continued(submodel, cached_tokens(cache), self.engine.generations.plan_of(cache))

    def _note_cache(self, inputs: Mapping[str, Any], output: Any) -> None:
        given = inputs.get("past_key_values")
        cache = getattr(output, "past_key_values", None) if given is None else given
        engine = self.engine
        engine.generations.note_cache(cache, engine.streamer.prepared.plan, engine.is_step)

    @contextmanager
    def _turn_of(self, module: nn.Module) -> Iterator[None]:
        """A turn for a forward of this module; of the whole model's, with all that it takes, the time is kept."""
        _refuse_training(module)
        engine = self.engine
        with engine.turn(), torch.no_grad():
            begun, before, followed = time.perf_counter(), engine.last_run, _last_run(engine.following)
            yield
            if "sti" in module.__dict__ and engine.last_run is not before:
                after = _last_run(engine.following)
                engine.note_total(time.perf_counter() - begun, None if after is followed else after)


def _last_run(engine: Engine | None) -> RunTimeline | None:
    return None if engine is None else engine.last_run


def _refuse_training(module: nn.Module) -> None:
    if module.training:
        raise UnsupportedUseError(
            "A model that runs from its store is for inference only: call model.eval() first; to train, load the "
            "checkpoint without sti_config."
        )
