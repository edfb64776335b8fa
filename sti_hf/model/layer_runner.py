"""Parts of a model's forward: up to a layer, one layer, from a layer on. The model's own code runs, whatever it is."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from sti_hf.model import get_architecture

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Inputs = Mapping[str, Tensor]
"""What a model's forward takes, for some texts: `input_ids`, `attention_mask` (1: a token, 0: padding), .."""

STATES_IN_MEMORY = 1 << 30
"""Hidden states of more bytes than this are kept in a file."""


@dataclass
class LayerExecutions:
    """How often layers were executed: `sentences` counts each sentence (or image) in each layer, `tokens` each of its
    tokens, padding included."""

    sentences: int = 0
    tokens: int = 0

    def add(self, batch: int, tokens: int, layers: int) -> None:
        """Counts a batch that went through that many layers."""
        self.sentences += layers * batch
        self.tokens += layers * batch * tokens


class LayerRunner:
    """Runs some layers of a model on hidden states that others have left, bit for bit as the whole model would.

    The layers outside are taken out of the model while it runs, and the first one inside is given the hidden states in
    place of its own: masks and position biases are whatever the model's code makes of the inputs.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self.model = model
        self.executions = LayerExecutions()
        self._layers = list(layers_of(model))
        self._outputs: int | None = None

    def shape_of(self, inputs: Inputs) -> tuple[int, int]:
        """Batch, and tokens of each sequence, of inputs."""
        config = self.model.config
        shape = get_architecture(config).shape_of(config, inputs)
        assert shape is not None
        return shape

    @torch.no_grad()
    def embedded(self, inputs: Inputs) -> Tensor:
        """The first layer's input: float32 `[batch, tokens, hidden]`."""

        def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            raise _Reached(input_of_layer(args, kwargs))

        handle = self._layers[0].register_forward_pre_hook(stop, with_kwargs=True)
        try:
            return self._reached(inputs)
        finally:
            handle.remove()

    @torch.no_grad()
    def advance(self, inputs: Inputs, layer: int, states: Tensor) -> Tensor:
        """The output of one layer for its input: float32 `[batch, tokens, hidden]` both."""

        def stop(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
            self._outputs = outputs_of_layer(output)
            raise _Reached(output_of_layer(output))

        layers = [*self._passed(inputs, layer), self._layers[layer]]
        handle = self._layers[layer].register_forward_hook(stop)
        self.executions.add(*self.shape_of(inputs), 1)
        try:
            with only_layers(self.model, layers), _starting_with(self._layers[layer], states):
                return self._reached(inputs)
        finally:
            handle.remove()

    @torch.no_grad()
    def finish(self, inputs: Inputs, layer: int, states: Tensor) -> Tensor:
        """The logits, given the input of `layer`: only it and those above are executed."""
        layers = [*self._passed(inputs, layer), *self._layers[layer:]]
        self.executions.add(*self.shape_of(inputs), len(self._layers) - layer)
        with only_layers(self.model, layers), _starting_with(self._layers[layer], states):
            return self._logits(inputs)

    @torch.no_grad()
    def head(self, inputs: Inputs, states: Tensor) -> Tensor:
        """The logits, given the output of what is taken for the last layer."""
        with only_layers(self.model, [StandIn(self._layers[0], self._form(inputs), states)]):
            return self._logits(inputs)

    @torch.no_grad()
    def run(self, inputs: Inputs) -> Tensor:
        """The logits of the whole model."""
        self.executions.add(*self.shape_of(inputs), len(self._layers))
        return self._logits(inputs)

    def _passed(self, inputs: Inputs, layer: int) -> list[nn.Module]:
        """What stands in for the layers before one: some models look up by its place what a layer is called with."""
        return [StandIn(each, self._form(inputs)) for each in self._layers[:layer]]

    def _form(self, inputs: Inputs) -> int:
        if self._outputs is None:
            self.advance(inputs, 0, self.embedded(inputs))
        assert self._outputs is not None
        return self._outputs

    def _logits(self, inputs: Inputs) -> Tensor:
        logits: Tensor = self.model(**inputs).logits
        return logits

    def _reached(self, inputs: Inputs) -> Tensor:
        try:
            self.model(**inputs)
        except _Reached as reached:
            return reached.states
        raise AssertionError("the model's forward has not executed its layers")


class HiddenStates:
    """Inputs of one layer, the first one at first, for all batches: in memory, or in a file where they are many.

    Args:
        runner: of the model, whose weights count at the time when a layer is executed.
        batches: the model's inputs.
        folder: for the file. It has no name there and is gone with the process.
    """

    def __init__(self, runner: LayerRunner, batches: Sequence[Inputs], folder: Path | None = None) -> None:
        self.runner = runner
        self.batches = batches
        self.layer = 0
        shapes = [(*runner.shape_of(batch), runner.model.config.hidden_size) for batch in batches]
        sizes = [math.prod(shape) for shape in shapes]
        if 4 * sum(sizes) > STATES_IN_MEMORY:
            with tempfile.NamedTemporaryFile(dir=folder) as file:
                memory = torch.from_file(file.name, shared=True, size=sum(sizes))
        else:
            memory = torch.empty(sum(sizes))
        self._states = [part.view(shape) for part, shape in zip(memory.split(sizes), shapes)]
        for batch, states in zip(batches, self._states):
            states.copy_(runner.embedded(batch))

    def advance_to(self, layer: int) -> None:
        """Executes the layers below `layer`."""
        while self.layer < layer:
            for batch, states in zip(self.batches, self._states):
                states.copy_(self.runner.advance(batch, self.layer, states))
            self.layer += 1

    def finish(self, index: int) -> Tensor:
        """The logits of a batch, executing the layers that are left."""
        return self.runner.finish(self.batches[index], self.layer, self._states[index])

    def head(self, index: int) -> Tensor:
        """The logits of a batch as if there were no more layers."""
        return self.runner.head(self.batches[index], self._states[index])


def layers_of(model: PreTrainedModel) -> nn.ModuleList:
    """The layers that a model has now."""
    layers = model.base_model.get_submodule(get_architecture(model.config).layers)
    assert isinstance(layers, nn.ModuleList)
    return layers


@contextmanager
def only_layers(model: PreTrainedModel, layers: Sequence[nn.Module]) -> Iterator[None]:
    """The model with these layers in place of those that it has."""
    whole = layers_of(model)
    path = get_architecture(model.config).layers
    model.base_model.set_submodule(path, nn.ModuleList(layers))
    try:
        yield
    finally:
        model.base_model.set_submodule(path, whole)


def input_of_layer(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """Hidden states in what a layer's forward is called with."""
    states: Tensor = args[0] if args else kwargs["hidden_states"]
    return states


def with_input(
    args: tuple[Any, ...], kwargs: dict[str, Any], states: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a layer's forward is called with, but for the hidden states."""
    return ((states, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": states})


def output_of_layer(output: Any) -> Tensor:
    """Hidden states in what a layer's forward returns."""
    states: Tensor = output[0] if isinstance(output, tuple) else output
    return states


def outputs_of_layer(output: Any) -> int:
    """How many values a layer's forward returns in a tuple; 0 where it returns hidden states alone."""
    return len(output) if isinstance(output, tuple) else 0


class StandIn(nn.Module):
    """Has the attributes of a layer, and gives `states` (None: its input) in the form of so many `outputs`."""

    def __init__(self, layer: nn.Module, outputs: int, states: Tensor | None = None) -> None:
        super().__init__()
        self.__dict__.update(layer=layer, outputs=outputs, states=states)

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(self.__dict__["layer"], name)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What a layer that is not executed gives."""
        states = input_of_layer(args, kwargs) if self.states is None else self.states
        return (states, *[None] * (self.outputs - 1)) if self.outputs else states


class _Reached(Exception):
    """Ends a forward whose hidden states are all that is wanted of it."""

    def __init__(self, states: Tensor) -> None:
        super().__init__()
        self.states = states


@contextmanager
def _starting_with(layer: nn.Module, states: Tensor) -> Iterator[None]:
    """The layer takes these hidden states for its input, whatever it is called with."""

    def replace(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, Any]:
        return with_input(args, kwargs, states)

    handle = layer.register_forward_pre_hook(replace, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()
