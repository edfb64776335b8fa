"""The forwards of a stock model that keep order, in the place of its modules' own.

A guarded forward refers to its module weakly, so that a deleted model is freed at once. Classes stay as they are, and
hooks of a user, of accelerate or of Transformers come and go around it.
"""

from __future__ import annotations

import functools
import inspect
import sys
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from sti_hf.errors import UnsupportedUseError
from sti_hf.runtime.forwards import Forwards
from sti_hf.runtime.inputs import named_inputs
from sti_hf.runtime.modules.part import StoredPart, refuse_copy

Run = Callable[[Forwards, Any, dict[str, Any], Callable[[], Any]], Any]

Call = Callable[[Any, Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]
"""What a guarded forward does with its module, its class's own forward, and the inputs."""

FORWARD, REDUCE, GUARDED = "forward", "__reduce_ex__", "_guarded"
"""The attributes that `nn.Module.__call__` calls, and `copy` and `pickle`; and the mark of a guarded forward."""


class PlannedLayers(StoredPart, nn.ModuleList):
    """The layers of a model: all of them, but in an inference, to the thread that runs it, those of its plan."""

    forwards: Forwards

    def _planned(self) -> list[nn.Module]:
        every = list(self._modules.values())
        executed = self.forwards.executed_layers()
        return every if executed is None else [every[layer] for layer in executed]

    def __iter__(self) -> Iterator[nn.Module]:
        return iter(self._planned())

    def __len__(self) -> int:
        return len(self._planned())

    def __getitem__(self, index: Any) -> Any:
        chosen = self._planned()[index]
        return nn.ModuleList(chosen) if isinstance(index, slice) else chosen


def guard(module: nn.Module, forwards: Forwards, run: Run, layers: str | None = None) -> None:
    """Lets `run`, a method of `Forwards`, run the forward of a module; `layers` names its layers, if it has them."""
    count = 0 if layers is None else len(getattr(module, layers)._modules)
    names = tuple(_bound_signature(type(module).forward).parameters)

    def call(module: nn.Module, stock: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        if layers is not None:
            check_layers(module, layers, count)
        inputs = named_inputs(names, args, kwargs)
        return run(forwards, module, inputs, functools.partial(stock, module, *args, **kwargs))

    _put_forward(module, call)


def guard_layers(layers: nn.ModuleList, forwards: Forwards) -> None:
    """Guards layers; an inference sees only those that it runs."""
    for index, layer in enumerate(layers):
        _put_forward(layer, _layer_call(forwards, index))
    layers.__dict__["forwards"] = forwards
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
    if hasattr(module.__dict__.get(FORWARD), GUARDED):
        del module.__dict__[FORWARD]
        module.__dict__.pop(REDUCE, None)
    if type(module) is PlannedLayers:
        setattr(module, "__class__", nn.ModuleList)  # noqa: B010 - mypy holds on to the class it had


def _layer_call(forwards: Forwards, layer: int) -> Call:
    def call(module: nn.Module, stock: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        return forwards.run_layer(module, layer, args, kwargs, functools.partial(stock, module))

    return call


def _put_forward(module: nn.Module, call: Call) -> None:
    reference, stock = weakref.ref(module), type(module).forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        this = reference()
        if this is None:
            raise UnsupportedUseError("This is a shallow copy of a model that was deleted: use copy.deepcopy.")
        # As torch.compiler.disable, which imports the compiler: a second, where nobody has imported it.
        run = call if sys.modules.get("torch._dynamo") is None else torch.compiler.disable(call)
        return run(this, stock, args, kwargs)

    forward.__doc__, forward.__signature__ = stock.__doc__, _bound_signature(stock)  # type: ignore[attr-defined]
    setattr(forward, GUARDED, True)
    module.__dict__[REDUCE] = refuse_copy
    module.__dict__[FORWARD] = forward


@functools.cache
def _bound_signature(method: Callable[..., Any]) -> inspect.Signature:
    signature = inspect.signature(method)
    return signature.replace(parameters=list(signature.parameters.values())[1:])
