"""Gives a model weights: exactly those that it has, under the names that the class has them under, or none."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from sti_hf.errors import StoreError
from sti_hf.shards.store import ShardStore

SHOWN = 3
"""How many weights a message names."""


@dataclass
class Assigned:
    """What came of giving a model weights: names in the model that are `missing`, or `mismatched` with the shapes
    found and needed, and names that were given and have no place in it, `unexpected`. Where some are missing or
    mismatched, the model was given none."""

    missing: list[str] = field(default_factory=list)
    mismatched: dict[str, tuple[list[int], list[int]]] = field(default_factory=dict)
    unexpected: set[str] = field(default_factory=set)


def assign_weights(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> Assigned:
    """Makes `weights` the parameters (in the dtype these have, and not trained) and persistent buffers of a model.

    Names are those in the class that the weights were saved from: its base model's names may begin with
    `base_model_prefix` where the model's own do not, and the other way round. One of two tied weights is enough.
    """
    named = _named_for(model, weights)
    tied = _tied(model)
    result, sources = Assigned(), {}
    slots = list(_slots(model))
    for name, _, _, tensor in slots:
        source = next((each for each in (name, *tied.get(name, ())) if each in named), None)
        if source is None:
            result.missing.append(name)
        elif named[source][1].shape != tensor.shape:
            result.mismatched[name] = (list(named[source][1].shape), list(tensor.shape))
        else:
            sources[name] = source
    used = {named[source][0] for source in sources.values()}
    result.unexpected = set(weights) - used
    if not result.missing and not result.mismatched:
        _put(slots, {name: named[source][1] for name, source in sources.items()})
        _forget_untied(model)
        for module in model.modules():
            module._is_hf_initialized = True  # type: ignore[assignment] # else `init_weights` makes them random
    return result


def lacks(store: ShardStore, model: PreTrainedModel, missing: list[str]) -> StoreError:
    """The error for a store that has no weights for some of a class."""
    name = type(model).__name__
    without_pooler = all(".pooler." in f".{each}" for each in missing) and (
        "add_pooling_layer" in inspect.signature(type(model).__init__).parameters
    )
    return StoreError(
        f"The store {store.path} lacks {len(missing)} of the weights of {name} ({_listed(missing)}): "
        + ("load it with add_pooling_layer=False, or " if without_pooler else "")
        + f"shard a checkpoint that has them with `sti shard SRC STORE --model-class {name}`."
    )


def mismatches(
    store: ShardStore, model: PreTrainedModel, shapes: dict[str, tuple[list[int], list[int]]]
) -> StoreError:
    """The error for a store that has weights of a class in other shapes than its configuration asks for."""
    name, (found, needed) = next(iter(shapes.items()))
    return StoreError(
        f"{len(shapes)} of the weights of {type(model).__name__} have other shapes in the store {store.path} than "
        f"this configuration asks for, such as {name}: {found} instead of {needed}; leave the configuration as it is, "
        "or shard a checkpoint that has them so."
    )


def _named_for(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> dict[str, tuple[str, Tensor]]:
    """The weights under their names in the model, each with its own name."""
    prefix = f"{model.base_model_prefix}."
    is_base, of_base = model.base_model is model, not any(name.startswith(prefix) for name in weights)
    if is_base and not of_base:
        return {
            name.removeprefix(prefix): (name, weight) for name, weight in weights.items() if name.startswith(prefix)
        }
    if of_base and not is_base:
        return {prefix + name: (name, weight) for name, weight in weights.items()}
    return {name: (name, weight) for name, weight in weights.items()}


def _tied(model: PreTrainedModel) -> dict[str, list[str]]:
    """For every tied parameter, the names of those that are the same."""
    same: dict[str, list[str]] = {}
    for target, source in (getattr(model, "all_tied_weights_keys", None) or {}).items():
        for one, other in ((target, source), (source, target)):
            same.setdefault(one, []).append(other)
    return same


def _slots(model: nn.Module) -> Iterator[tuple[str, nn.Module, str, Tensor]]:
    """Every parameter and persistent buffer: its name in the model, its module, its name there, and the tensor."""
    for path, module in model.named_modules():
        prefix = f"{path}." if path else ""
        for name, parameter in module._parameters.items():
            if parameter is not None:
                yield prefix + name, module, name, parameter
        for name, buffer in module._buffers.items():
            if buffer is not None and name not in module._non_persistent_buffers_set:
                yield prefix + name, module, name, buffer


def _put(slots: list[tuple[str, nn.Module, str, Tensor]], weights: Mapping[str, Tensor]) -> None:
    made: dict[tuple[int, torch.dtype], nn.Parameter] = {}
    for path, module, name, tensor in slots:
        weight = weights[path]
        if not isinstance(tensor, nn.Parameter):
            module._buffers[name] = weight.to(tensor.dtype)
            continue
        key = (id(weight), tensor.dtype)
        if key not in made:
            made[key] = nn.Parameter(weight.to(tensor.dtype), requires_grad=False)
        module._parameters[name] = made[key]  # what setattr does, after asking whether it is one


def _forget_untied(model: PreTrainedModel) -> None:
    """Leaves in the model's table of tied weights what is there: the store has the others."""
    tied = getattr(model, "all_tied_weights_keys", None)
    if tied:
        names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
        model.all_tied_weights_keys = {target: source for target, source in tied.items() if {target, source} <= names}


def _listed(names: list[str]) -> str:
    return ", ".join(names[:SHOWN]) + (", …" if len(names) > SHOWN else "")
