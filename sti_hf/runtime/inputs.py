"""What a model is called with: checked before anything runs, and what it says of the work to do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from sti_hf.errors import InputError, UnsupportedUseError
from sti_hf.model import Architecture, Grid
from sti_hf.planning import Workload

MAIN_INPUTS = ("input_ids", "inputs_embeds", "pixel_values", "input_values")
ID_DTYPES = (torch.int64, torch.int32)


def named_inputs(names: Sequence[str], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a forward by name; `names` are those of its positional parameters."""
    return {**dict(zip(names, args)), **kwargs}


def check_inputs(inputs: Mapping[str, Any]) -> None:
    """Raises `InputError` or `UnsupportedUseError`, one sentence, for what a model from a store cannot take."""
    if torch.jit.is_tracing() or torch.compiler.is_exporting():
        raise UnsupportedUseError(
            "A model that runs from its store cannot be traced or exported: export the checkpoint that it was made "
            "from."
        )
    ids = inputs.get("input_ids")
    if ids is not None:
        if not isinstance(ids, Tensor):
            raise InputError(
                f"input_ids must be a tensor of token ids, not {type(ids).__name__}: use return_tensors='pt'."
            )
        if ids.dtype not in ID_DTYPES:
            raise InputError(f"input_ids must be whole numbers (torch.long), not {ids.dtype}.")
    for name, value in inputs.items():
        if not isinstance(value, Tensor):
            continue
        if value.device.type != "cpu":
            raise UnsupportedUseError(
                f"{name} is on the device {value.device}, and a model runs from its store on the CPU: keep it and its "
                "inputs there (device='cpu')."
            )
        if name in MAIN_INPUTS and value.numel() == 0:
            raise InputError(
                f"{name} is empty, {list(value.shape)}: give at least one text of one token, one image, or one sound."
            )
        if value.requires_grad and torch.is_grad_enabled():
            raise UnsupportedUseError(
                f"Gradients of {name} were asked for, and a model that runs from its store is for inference only: "
                "call it under torch.no_grad(), or load the checkpoint without sti_config."
            )


def check_depth(config: Any, layers: int) -> None:
    """Raises `UnsupportedUseError` where a model's configuration names another number of layers, and puts it right:
    Transformers changes it for a draft of the first layers, and leaves it so where that fails."""
    if config.num_hidden_layers != layers:
        named, config.num_hidden_layers = config.num_hidden_layers, layers
        raise UnsupportedUseError(
            f"The configuration of this model named {named} layers, and its store has {layers}: generate without "
            "assistant_early_exit, and ask for parts of the model by target_latency and submodels."
        )


def check_length(module: Any, architecture: Architecture, inputs: Mapping[str, Any], workload: Workload) -> None:
    """Raises `InputError` where a base model's inputs are longer than it has positions."""
    config, ids, tokens = module.config, inputs.get("input_ids"), workload.tokens
    longest = architecture.longest_input(config)
    if tokens <= longest or inputs.get("position_ids") is not None or not architecture.bounds_positions(config):
        return
    if architecture.skips_padding and isinstance(ids, Tensor):
        tokens = int((ids != config.pad_token_id).sum(-1).max())
    if tokens > longest:
        raise InputError(f"The input has {tokens} tokens, and this model takes {longest}: shorten it.")


def workload_of(config: Any, architecture: Architecture, inputs: Mapping[str, Any]) -> Workload:
    """The work that a base model's inputs are."""
    shape = architecture.shape_of(config, inputs)
    if shape is None:
        raise InputError(f"The model needs {' or '.join(architecture.main_inputs)}.")
    batch, tokens = shape
    return Workload(tokens, batch, cached_tokens(inputs.get("past_key_values")))


def workload_of_states(states: Any) -> Workload:
    """The work of running the layers on hidden states `[batch, tokens, hidden]`."""
    if not isinstance(states, Tensor) or states.dim() != 3 or states.numel() == 0:
        raise InputError("The layers need hidden states, a tensor [batch, tokens, hidden].")
    return Workload(tokens=states.shape[1], batch=states.shape[0])


def cached_tokens(cache: Any) -> int:
    """Tokens of each sequence that a key/value cache holds, rounded up as those of texts are: what attention to them
    costs is predicted once for many."""
    length = int(cache.get_seq_length()) if hasattr(cache, "get_seq_length") else 0
    return Workload.bucket(length) if length else 0


def cached_submodel(cache: Any, grid: Grid) -> tuple[int, int] | None:
    """(n, m): layers, and slices of each, that a key/value cache was made with; None where it holds nothing yet.

    A slice has one head in the cache, but where slices are not droppable: then all of them run.
    """
    cache = getattr(cache, "self_attention_cache", cache)
    if cache is None or not hasattr(cache, "layers"):
        return None
    keys = [layer.keys for layer in cache.layers if isinstance(getattr(layer, "keys", None), Tensor)]
    keys = [each for each in keys if each.dim() == 4 and each.numel()]
    if not keys or cache.get_seq_length() == 0:
        return None
    return len(keys), keys[0].shape[1] if grid.droppable else grid.slices
