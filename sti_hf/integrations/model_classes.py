"""Which Transformers class a checkpoint or a store is a model of."""

from __future__ import annotations

from typing import Any

import transformers
from transformers import MODEL_MAPPING, PreTrainedConfig, PreTrainedModel

from sti_hf.errors import ConfigurationError, SourceError


def named_class(config: PreTrainedConfig) -> type[PreTrainedModel] | None:
    """The Transformers class that `config.architectures` names, or None where that is not clear.

    It is not where nothing is named, several classes are, or what is named is no model class of Transformers (of
    TensorFlow, a user's own, an auto class) or of another family.
    """
    names = config.architectures
    if not isinstance(names, list | tuple) or len(names) != 1:
        return None
    found = _model_class(names[0])
    return found if found is not None and isinstance(config, found.config_class) else None


def stock_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The Transformers class that a checkpoint or store was saved from. Raises `SourceError` where that is unclear."""
    found = named_class(config)
    if found is None:
        raise SourceError(unclear_class(str(config.name_or_path), config))
    return found


def bare_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The encoder of the family, without a head; the class itself where there is none with its names of weights."""
    bare: Any = MODEL_MAPPING.get(type(config), None)
    named = named_class(config)
    fits = bare is not None and (named is None or named.base_model_prefix == bare.base_model_prefix)
    return bare if fits else stock_class(config)


def class_by_name(name: str) -> type[PreTrainedModel]:
    """A model class of Transformers. Raises `ConfigurationError` where it has none of that name."""
    found = _model_class(name)
    if found is None:
        raise ConfigurationError(
            f"Transformers has no model class {name!r}; name one such as BertForSequenceClassification."
        )
    return found


def unclear_class(source: str, config: PreTrainedConfig) -> str:
    """The sentence to raise where the class is not clear."""
    return (
        f"Which class {source} is a model of is not clear (the architectures of its config.json are "
        f"{config.architectures!r}): name the class (in Python model_class=, or `sti shard SRC STORE --model-class "
        "BertForSequenceClassification`)."
    )


def _model_class(name: Any) -> Any:
    found = getattr(transformers, name, None) if isinstance(name, str) else None
    usable = isinstance(found, type) and issubclass(found, PreTrainedModel) and not name.endswith("PreTrainedModel")
    return found if usable else None
