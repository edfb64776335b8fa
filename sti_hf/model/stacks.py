"""The stacks of a model: layers that run one after the other. Most models have one, CLIP has two towers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sti_hf.model.architecture import base_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

TOWERS = {"text_model": "text_config", "vision_model": "vision_config"}

STACKED: Mapping[str, Mapping[str, str]] = {"clip": TOWERS, "siglip": TOWERS}
"""Of models with several stacks, by `config.model_type`: the path in the base model of each, which is a model of its
own, and the field of the configuration that has the stack's."""


def stack_configs(config: PreTrainedConfig) -> dict[str, PreTrainedConfig]:
    """The configuration of each stack of a model, by its path in the base model: "" where that has the layers."""
    fields = STACKED.get(config.model_type)
    return {"": config} if fields is None else {path: getattr(config, field) for path, field in fields.items()}


def stack_models(model: PreTrainedModel) -> dict[str, PreTrainedModel]:
    """Each stack of a model as a model of its own, as far as this class has it."""
    base: Any = model.base_model
    fields = STACKED.get(model.config.model_type)
    return {"": model} if fields is None else {path: getattr(base, path) for path in fields if hasattr(base, path)}


def stack_prefix(model: PreTrainedModel, path: str) -> str:
    """What the names of a stack's parameters, as a model of its own, begin with in the whole model."""
    return f"{base_prefix(model)}{path}." if path else ""
