"""The model of a checkpoint: all of its class, or an error. Nothing is made up."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN

from sti_hf.errors import SourceError, StoreError, UnsupportedModelError
from sti_hf.integrations.model_classes import bare_class, named_class, unclear_class
from sti_hf.integrations.sources import ADAPTER_FILE, Source, in_one_sentence
from sti_hf.integrations.weight_files import read_weights, weight_files
from sti_hf.model import get_architecture
from sti_hf.model.stacks import stack_configs

NO_ARGUMENTS: Mapping[str, Any] = {}
SHOWN = 4
"""How many keys a message names."""


def checkpoint_model(
    source: Source,
    model_class: type[PreTrainedModel] | None = None,
    model_arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> PreTrainedModel:
    """The model of a checkpoint in eval mode, its weights mapped from the files, in their own dtype.

    `model_class` is what it is a model of; None: the class that its configuration names, or the bare encoder where
    that is unclear and the checkpoint holds nothing else. `model_arguments` go to the class beside the configuration
    (`add_pooling_layer=False`). A head that the checkpoint has and the class has not is left
    out. Raises `UnsupportedModelError` for a family that is not supported, `SourceError` where the checkpoint is
    damaged, quantized already, an adapter, lacks weights of the class, or has layers that the class has not.
    """
    content = source_config(source)
    config = _config_object(source, content, model_class)
    weights = read_weights(source, weight_files(source, content))
    named = model_class or named_class(config)
    chosen: Any = named or bare_class(config)
    # Not the class's own from_pretrained, which may give something else than model and report.
    load: Any = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
    with in_one_sentence(f"{source.name} cannot be loaded as {chosen.__name__}"), _without_load_report():
        model, report = load(
            chosen,
            None,
            config=config,
            state_dict=weights,
            dtype="auto",
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # only to learn their names: _check_report refuses them
            **model_arguments,
        )
    if named is None and report["unexpected_keys"]:
        raise SourceError(unclear_class(source.name, config))
    _check_report(source, model, report, weights)
    model.config.name_or_path = source.name
    return model


@contextmanager
def _without_load_report() -> Iterator[None]:
    """Without Transformers' report of what it has made up: that is an error here, not a warning. For this thread."""
    thread = threading.get_ident()

    def keep(record: logging.LogRecord) -> bool:
        return record.thread != thread or "LOAD REPORT" not in record.getMessage()

    logger = logging.getLogger("transformers.modeling_utils")
    logger.addFilter(keep)
    try:
        yield
    finally:
        logger.removeFilter(keep)


def source_config(source: Source) -> dict[str, Any]:
    """The content of a checkpoint's `config.json`.

    Raises `SourceError` where the checkpoint is an adapter, or quantized, `StoreError` where it is part of a store.
    """
    if source.find(ADAPTER_FILE) is not None:
        raise SourceError(
            f"{source.name} holds an adapter ({ADAPTER_FILE}): merge it into its model first (in peft "
            "merge_and_unload), and shard what that saves."
        )
    content = source.config()
    quantization = content.get("quantization_config") or content.get("compression_config")
    method = quantization.get("quant_method") if isinstance(quantization, Mapping) else None
    if method == "sti":
        raise StoreError(f"{source.name} is a store that has lost its index; copy it again or shard the model again.")
    if quantization:
        raise SourceError(
            f"{source.name} is quantized already ({method or 'as its config.json says'}): shard the checkpoint that "
            "it was made from."
        )
    return content


def _config_object(
    source: Source, content: Mapping[str, Any], model_class: type[PreTrainedModel] | None
) -> PreTrainedConfig:
    config_class: Any = getattr(model_class, "config_class", None)
    model_type = content.get("model_type")
    of_class = config_class is None or model_type in (None, config_class.model_type)
    if model_class is not None and not of_class and not _is_tower_of(config_class, model_type):
        raise SourceError(
            f"{source.name} is a model of type {model_type!r}, and {model_class.__name__} takes those of type "
            f"{config_class.model_type!r}; name a class of its own family."
        )
    with in_one_sentence(f"Transformers cannot read the config.json of {source.name}"):
        if config_class is not None:
            config: Any = config_class.from_pretrained(source.location, **source.hub)
        else:
            config = AutoConfig.from_pretrained(source.location, trust_remote_code=False, **source.hub)
    for each in stack_configs(config).values():
        _check_stack(source, each)
    return config


def _check_stack(source: Source, config: PreTrainedConfig) -> None:
    """Raises `STIError` for a configuration of a stack that is not supported or makes no sense."""
    architecture = get_architecture(config)
    with in_one_sentence(f"The sizes in the config.json of {source.name} make no sense"):
        architecture.grid(config)
    for field in ("hidden_act", "hidden_activation", "activation"):
        activation = getattr(config, field, None)
        if isinstance(activation, str) and activation not in ACT2FN:
            raise UnsupportedModelError(
                f"{source.name} has the activation {activation!r}, which Transformers has not."
            )


def _is_tower_of(config_class: Any, model_type: Any) -> bool:
    """Whether models of a type have one of this configuration as a part, which Transformers reads from their files."""
    whole = CONFIG_MAPPING[model_type] if isinstance(model_type, str) and model_type in CONFIG_MAPPING else None
    return whole is not None and whole.sub_configs.get(config_class.base_config_key) is config_class


def _check_report(
    source: Source, model: PreTrainedModel, report: Mapping[str, Any], weights: Mapping[str, Tensor]
) -> None:
    """Raises `SourceError` where Transformers has made up a weight, or passed over one that the model should have."""
    name, class_name = source.name, type(model).__name__
    if report["error_msgs"]:
        raise SourceError(f"{name} cannot be loaded as {class_name}: {' '.join(report['error_msgs'][0].split())}.")
    if report["mismatched_keys"]:
        key, found, expected = min(report["mismatched_keys"])
        raise SourceError(
            f"{len(report['mismatched_keys'])} of the weights of {name} have other sizes than its config.json says, "
            f"such as {key}: {list(found)} instead of {list(expected)}."
        )
    missing = set(report["missing_keys"]) | _silently_missing(model, weights)
    if missing:
        only_pooler = all(".pooler." in f".{key}" for key in missing)
        raise SourceError(
            f"{name} lacks {len(missing)} of the weights of {class_name} ({_listed(missing)}): it is damaged, of "
            "another model than its config.json says, or was saved as another class; "
            + ("go without the pooler (add_pooling_layer=False), or " if only_pooler else "")
            + "name that class (model_class= or --model-class), or train the model for its task first."
        )
    without_place = _without_place(model, report["unexpected_keys"])
    if without_place:
        raise SourceError(
            f"{name} has {len(without_place)} weights of its encoder for which {class_name} with its config.json has "
            f"no place ({_listed(without_place)}): they belong to another configuration, such as one of more layers."
        )


def _silently_missing(model: PreTrainedModel, weights: Mapping[str, Tensor]) -> set[str]:
    """Weights that were made up and that the class tells Transformers not to report."""
    patterns = model._keys_to_ignore_on_load_missing or ()
    prefix = f"{model.base_model_prefix}."
    return {
        key
        for key in model.state_dict()
        if any(re.search(pattern, key) for pattern in patterns)
        and key not in (getattr(model, "all_tied_weights_keys", None) or {})
        and not {key, key.removeprefix(prefix), prefix + key} & weights.keys()
    }


def _without_place(model: PreTrainedModel, unexpected: Collection[str]) -> set[str]:
    """The keys that belong to parts of the encoder which the model has too; the others belong to heads it has not."""
    parts = {name for name, _ in model.base_model.named_children()}
    prefix = f"{model.base_model_prefix}."
    return {key for key in unexpected if key.removeprefix(prefix).partition(".")[0] in parts}


def _listed(keys: Collection[str]) -> str:
    shown = sorted(keys)[:SHOWN]
    return ", ".join(shown) + (", …" if len(keys) > len(shown) else "")
