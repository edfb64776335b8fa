"""`from_pretrained(..., sti_config=...)`, on every model class of Transformers."""

from __future__ import annotations

import copy
import functools
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from sti_hf.config import STIConfig
from sti_hf.errors import ConfigurationError, LoadingError, STIError
from sti_hf.integrations import quantizer as _quantizer  # noqa: F401 - Transformers learns of it
from sti_hf.integrations.building import build_model
from sti_hf.integrations.load_arguments import LoadArguments, check_attention, requested
from sti_hf.integrations.pipelines import pipeline_arguments, refuse_late_configuration
from sti_hf.integrations.reopening import reopening
from sti_hf.integrations.session import open_session, open_stacked_session
from sti_hf.integrations.store_cache import resolve_store
from sti_hf.integrations.structure import check_structure, store_for
from sti_hf.model.stacks import STACKED
from sti_hf.shards.resident import read_stack_resident
from sti_hf.shards.store import ShardStore, is_store, store_defaults


def install() -> None:
    """Teaches `PreTrainedModel.from_pretrained` the argument `sti_config`; calling it again changes nothing."""
    stock = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
    if getattr(stock, "_takes_sti_config", False):
        return

    @functools.wraps(stock)
    def from_pretrained(cls: type[PreTrainedModel], *args: Any, **kwargs: Any) -> Any:
        refuse_late_configuration()
        pipeline = pipeline_arguments()
        try:
            source = args[0] if args else kwargs.get("pretrained_model_name_or_path")
            sti_config = _sti_config(source, kwargs, pipeline or {})
            if sti_config is None:
                return stock(cls, *args, **kwargs)
            kwargs.pop("pretrained_model_name_or_path", None)
            loaded = _load(cls, sti_config, LoadArguments.of(source, args[1:], kwargs))
        except STIError as error:
            if pipeline is None:
                raise
            raise LoadingError(str(error)) from error
        if pipeline is not None:
            pipeline.pop("sti_config", None)
        return loaded

    from_pretrained._takes_sti_config = True  # type: ignore[attr-defined]
    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign,assignment]
    refuse_late_configuration()


def _sti_config(source: Any, kwargs: dict[str, Any], pipeline: dict[str, Any]) -> STIConfig | None:
    """What the call (or the `pipeline` that makes it) asks of sti_hf, or a store's defaults; None: a stock model."""
    asked = requested(kwargs)
    if asked is None:
        asked = pipeline.get("sti_config")
    if asked is None and isinstance(source, str | os.PathLike):
        folder = Path(source) / (kwargs.get("subfolder") or "")
        asked = store_defaults(folder) if is_store(folder) else None
    return None if asked is None else STIConfig.coerce(asked)


def _load(cls: type[PreTrainedModel], sti_config: STIConfig, arguments: LoadArguments) -> Any:
    made_with = {name: arguments.named[name] for name in ("add_pooling_layer",) if name in arguments.named}
    store = resolve_store(arguments.source, sti_config.quantizer, cls, made_with, **arguments.finding)
    config, named = _configuration(cls, arguments, store)
    stacked = config.model_type in STACKED
    store = store_for(config, store)
    check_structure(cls, config, store)
    with ThreadPoolExecutor(1, thread_name_prefix="sti_resident") as reader:
        resident = reader.submit(read_stack_resident, store)
        session: Any = open_stacked_session(store, sti_config) if stacked else open_session(store, sti_config, cls)
        try:
            model, unexpected = build_model(cls, config, session, resident.result, arguments.arguments, named)
            _take_generation_config(model, arguments)
            session.reopen = reopening
        except BaseException:
            session.close()
            raise
    if not arguments.with_loading_info:
        return model
    return model, {"missing_keys": set(), "unexpected_keys": unexpected, "mismatched_keys": set(), "error_msgs": []}


def _configuration(
    cls: type[PreTrainedModel], arguments: LoadArguments, store: ShardStore
) -> tuple[PreTrainedConfig, dict[str, Any]]:
    """The configuration of the model, its own, and the arguments that are left for the class."""
    config, named = arguments.config, dict(arguments.named)
    if isinstance(config, PreTrainedConfig):
        config = copy.deepcopy(config)
    elif cls.config_class is None:
        raise ConfigurationError(f"{cls.__name__} has no config_class: give from_pretrained a configuration, config=.")
    elif config is None:
        config, named = cls.config_class.from_pretrained(store.path, return_unused_kwargs=True, **named)
    else:
        found = {
            name: value for name, value in arguments.finding.items() if name not in ("variant", "use_safetensors")
        }
        config, named = cls.config_class.from_pretrained(config, return_unused_kwargs=True, **found, **named)
    if arguments.dtype is not None:
        config.dtype = arguments.dtype
    config.name_or_path = str(arguments.source)
    if arguments.attention is not None:
        config._attn_implementation = arguments.attention
    check_attention(config._attn_implementation)
    return config, named


def _take_generation_config(model: Any, arguments: LoadArguments) -> None:
    """Gives a model that can generate what its source, or the call, says about generating, as Transformers does."""
    if not model.can_generate() or not hasattr(model, "adjust_generation_fn"):
        return
    names = ("cache_dir", "force_download", "proxies", "local_files_only", "token", "revision", "subfolder")
    model.adjust_generation_fn(
        arguments.generation_config,
        False,
        None,
        str(arguments.source),
        **{**dict.fromkeys(names), "subfolder": "", **{n: v for n, v in arguments.finding.items() if n in names}},
        trust_remote_code=arguments.trust_remote_code,
        **arguments.named,
    )
