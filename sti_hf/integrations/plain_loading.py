"""Builds a store's model where nothing is left to decide, in a third of the time of Transformers' general loader.

That one renames, casts, places on devices, initializes what a checkpoint lacks and reports it, tensor by tensor. A
store loaded as the class it was made from needs none of this: its resident weights have the model's names, shapes and
dtypes. Whatever else is asked for goes to the general loader.
"""

from __future__ import annotations

import copy
from concurrent.futures import Future
from typing import Any

import torch
from accelerate import init_empty_weights
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.initialization import no_init_weights

from sti_hf.config import STIConfig
from sti_hf.integrations.quantizer import STIHfQuantizer

OF_AUTO_CLASSES = frozenset({"_from_auto", "_commit_hash", "trust_remote_code"})
"""Arguments of `from_pretrained` with which an Auto class calls it, and which ask for nothing here."""


def is_plain(
    model_class: type[PreTrainedModel], config: PreTrainedConfig, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> bool:
    """Whether a call of `from_pretrained` asks for the store's own model on the CPU, with nothing special about it.

    Language models are left to the general loader: it ties their heads, and finds their generation configuration.
    """
    asked = {name for name, value in kwargs.items() if value is not None and name not in OF_AUTO_CLASSES}
    if kwargs.get("dtype") == "auto":
        asked.discard("dtype")
    return (
        not args
        and not asked
        and config.architectures == [model_class.__name__]
        and isinstance(config.dtype, torch.dtype)
        and torch.get_default_device() == torch.device("cpu")
        and not getattr(model_class, "_tied_weights_keys", None)
        and not model_class.can_generate()
    )


def build_plain(
    model_class: type[PreTrainedModel],
    config: PreTrainedConfig,
    sti_config: STIConfig,
    reading: Future[dict[str, Tensor]],
) -> PreTrainedModel | None:
    """The model of a plain call, built while its resident weights are `reading`, and its session is `loading`.

    None where they are not exactly what this configuration of the model has: the general loader knows what to do.
    """
    quantizer = STIHfQuantizer(sti_config)
    # Buffers are not in the store, and small: they are made as the model makes them.
    with no_init_weights(), init_empty_weights(include_buffers=False):
        model = model_class._from_config(copy.deepcopy(config))
    quantizer.preprocess_model(model, dtype=config.dtype, device_map=None)
    if not _take(model, reading.result()):
        return None
    model.eval()
    model.hf_quantizer = quantizer
    quantizer.postprocess_model(model)
    return model


def _take(model: PreTrainedModel, resident: dict[str, Tensor]) -> bool:
    """Gives the model its weights; whether they are exactly those that it has, in shape and dtype."""
    left = dict(resident)
    for prefix, module in model.named_modules():
        for name, parameter in list(module.named_parameters(recurse=False)):
            weight = left.pop(f"{prefix}.{name}" if prefix else name, None)
            if weight is None or weight.shape != parameter.shape or weight.dtype != parameter.dtype:
                return False
            setattr(module, name, nn.Parameter(weight, requires_grad=False))
    return not left
