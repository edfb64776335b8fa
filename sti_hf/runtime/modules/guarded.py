"""The modules of a stock model that keep order: each becomes an instance of a subclass of its own class.

A subclass, and not a hook or a patched instance: it needs no reference from a module to itself, so that a deleted
model is freed at once, and hooks of a user, of accelerate or of Transformers come and go around it.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from sti_hf.errors import UnsupportedUseError
from sti_hf.runtime.forwards import Forwards
from sti_hf.runtime.inputs import named_inputs
from sti_hf.runtime.modules.part import StoredPart

Run = Callable[[Forwards, Any, dict[str, Any], Callable[[], Any]], Any]

FORWARDS, LAYER, LAYERS = "_sti_forwards", "_sti_layer", "_sti_layers"
"""Attributes of guarded modules."""


class GuardedModule(StoredPart):
    """What all guarded classes derive from."""


def guard(module: nn.Module, forwards: Forwards, run: Run, own: type | None = None) -> None:
    """Lets `run`, a method of `Forwards`, run the forward of a module; `own` adds methods to its class."""
    module.__dict__[FORWARDS] = forwards
    stock: Any = type(module)  # mypy takes no class of modules for hashable
    module.__class__ = _guarded_class(stock, run, own)


def guard_layers(stack: nn.Module, name: str, forwards: Forwards) -> None:
    """Guards the layers that a module has under a name; an inference sees only those that it runs."""
    layers = getattr(stack, name)
    for index, layer in enumerate(layers):
        layer.__dict__.update({FORWARDS: forwards, LAYER: index})
        stock: Any = type(layer)
        layer.__class__ = _layer_class(stock)
    stack.__dict__[LAYERS] = name, len(layers)
    layers.__dict__[FORWARDS] = forwards
    layers.__class__ = PlannedLayers


def check_layers(stack: nn.Module, name: str, count: int) -> None:
    """Raises `UnsupportedUseError` unless a module has its layers as they were when they were guarded."""
    layers = getattr(stack, name)
    if not isinstance(layers, PlannedLayers) or len(layers._modules) != count:
        raise UnsupportedUseError(
            "The layers of this model were changed after it was loaded, and it runs from a store that has them all: "
            "load it again, and ask for parts of it by target_latency and submodels."
        )


def release(module: nn.Module) -> None:
    """Makes a guarded module what it was."""
    if isinstance(module, GuardedModule):
        module.__class__ = getattr(type(module), "stock_class")  # noqa: B009 - each guarded class has its own
        for name in (FORWARDS, LAYER, LAYERS):
            module.__dict__.pop(name, None)


class PlannedLayers(GuardedModule, nn.ModuleList):
    """The layers of a model: all of them, but in an inference, to the thread that runs it, those of its plan."""

    stock_class = nn.ModuleList

    def _planned(self) -> list[nn.Module]:
        every = list(self._modules.values())
        executed = self.__dict__[FORWARDS].executed_layers()
        return every if executed is None else [every[layer] for layer in executed]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._planned())

    def __len__(self) -> int:
        return len(self._planned())

    def __getitem__(self, index: Any) -> Any:
        chosen = self._planned()[index]
        return nn.ModuleList(chosen) if isinstance(index, slice) else chosen


@functools.cache
def _guarded_class(stock: type[nn.Module], run: Run, own: type | None) -> type[nn.Module]:
    stock_forward: Any = stock.forward
    names = tuple(inspect.signature(stock_forward).parameters)[1:]

    @functools.wraps(stock_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = self.__dict__
        if LAYERS in state:
            check_layers(self, *state[LAYERS])
        inputs = named_inputs(names, args, kwargs)
        forward = functools.partial(stock_forward, self, *args, **kwargs)
        return _outside_compiler(run)(state[FORWARDS], self, inputs, forward)

    return _subclass(stock, forward, own)


@functools.cache
def _layer_class(stock: Any) -> type[nn.Module]:
    stock_forward: Any = stock.forward

    @functools.wraps(stock_forward)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        state = self.__dict__
        run = functools.partial(stock_forward, self)
        return _outside_compiler(Forwards.run_layer)(state[FORWARDS], self, state[LAYER], args, kwargs, run)

    return _subclass(stock, forward, None)


def _outside_compiler(function: Callable[..., Any]) -> Callable[..., Any]:
    """As torch.compiler.disable, which imports the compiler: a second, where nobody has imported it."""
    dynamo = sys.modules.get("torch._dynamo")
    return function if dynamo is None else _disabled(function)


@functools.cache
def _disabled(function: Callable[..., Any]) -> Callable[..., Any]:
    disabled: Callable[..., Any] = torch.compiler.disable(function)
    return disabled


def _subclass(stock: type[nn.Module], forward: Any, own: type | None) -> type[nn.Module]:
    """A class that looks like `stock`: Transformers asks for classes by their names."""
    bases = (GuardedModule, stock) if own is None else (own, GuardedModule, stock)
    names = {name: getattr(stock, name) for name in ("__module__", "__qualname__", "__doc__")}
    return type(stock.__name__, bases, {**names, "forward": forward, "stock_class": stock})
