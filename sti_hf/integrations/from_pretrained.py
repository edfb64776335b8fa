"""`from_pretrained(..., sti_config=...)`, on every model class of Transformers."""

from __future__ import annotations

import copy
import functools
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedModel

from sti_hf.config import STIConfig
from sti_hf.integrations.plain_loading import build_plain, is_plain
from sti_hf.integrations.quantizer import is_loading, loading
from sti_hf.integrations.session import open_session
from sti_hf.integrations.sources import HUB_ARGUMENTS
from sti_hf.integrations.store_cache import resolve_store
from sti_hf.runtime.session import STISession
from sti_hf.shards.resident import read_resident
from sti_hf.shards.store import RESIDENT_FILE, ShardStore, is_store, store_defaults

SOURCE_ARGUMENTS = (*HUB_ARGUMENTS, "variant", "use_safetensors")


def install() -> None:
    """Teaches `PreTrainedModel.from_pretrained` the argument `sti_config`; calling it again changes nothing."""
    stock = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
    if getattr(stock, "_takes_sti_config", False):
        return

    @functools.wraps(stock)
    def from_pretrained(cls: type[PreTrainedModel], source: Any, *args: Any, **kwargs: Any) -> Any:
        sti_config = None if is_loading() else _sti_config(source, kwargs)
        if sti_config is None:
            return stock(cls, source, *args, **kwargs)
        return _load(stock, cls, source, sti_config, args, kwargs)

    from_pretrained._takes_sti_config = True  # type: ignore[attr-defined]
    PreTrainedModel.from_pretrained = classmethod(from_pretrained)  # type: ignore[method-assign,assignment]


def _sti_config(source: Any, kwargs: dict[str, Any]) -> STIConfig | None:
    """What the call asks of sti_hf: its `sti_config`, such a `quantization_config`, or a store's defaults."""
    sti_config = kwargs.pop("sti_config", None)
    if sti_config is None and _is_ours(kwargs.get("quantization_config")):
        sti_config = kwargs.pop("quantization_config")
    if sti_config is not None:
        return STIConfig.coerce(sti_config)
    if isinstance(source, str | Path) and is_store(source):
        return STIConfig.coerce(store_defaults(source))
    return None


def _is_ours(quantization_config: Any) -> bool:
    if isinstance(quantization_config, dict):
        return quantization_config.get("quant_method") == "sti"
    return isinstance(quantization_config, STIConfig)


def _load(
    stock: Any, cls: type[PreTrainedModel], source: Any, sti_config: STIConfig, args: Any, kwargs: dict[str, Any]
) -> Any:
    hub = {name: kwargs[name] for name in SOURCE_ARGUMENTS if kwargs.get(name) is not None}
    arguments = {name: kwargs[name] for name in ("add_pooling_layer",) if name in kwargs}
    store = resolve_store(source, sti_config.quantizer, cls, arguments, **hub)
    kwargs = _with_config(cls, {name: value for name, value in kwargs.items() if name not in SOURCE_ARGUMENTS})
    with ThreadPoolExecutor(1, thread_name_prefix="sti_resident") as reader:
        resident = reader.submit(read_resident, store)
        session = open_session(store, sti_config, cls)
        try:
            with loading(session):
                loaded = _plain(cls, store, session, resident, args, kwargs)
                if loaded is None:
                    resident.result()  # raises if they are damaged, which Transformers would not see
                    loaded = stock(cls, store.path, *args, **_with_resident_file(kwargs))
        except BaseException:
            session.close()
            raise
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.config.name_or_path = str(source)
    return loaded


def _with_config(cls: type[PreTrainedModel], kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments whose configuration, where it is named by a path, is loaded, with the fields that are given for it."""
    config = kwargs.get("config")
    if not isinstance(config, str | Path) or cls.config_class is None:
        return kwargs
    own = {name: kwargs[name] for name in ("dtype", "attn_implementation") if name in kwargs}
    fields = {name: value for name, value in kwargs.items() if name not in ("config", *own)}
    loaded, others = cls.config_class.from_pretrained(config, return_unused_kwargs=True, **fields)
    return {**own, **others, "config": loaded}


def _plain(
    cls: type[PreTrainedModel],
    store: ShardStore,
    session: STISession,
    resident: Future[dict[str, Tensor]],
    args: Any,
    kwargs: dict[str, Any],
) -> PreTrainedModel | None:
    """The model, where the call is a plain one; else None."""
    config = kwargs.get("config")
    options = {name: value for name, value in kwargs.items() if name != "config"}
    if config is None and cls.config_class is not None:
        config = cls.config_class.from_pretrained(store.path)
    if not isinstance(config, PreTrainedConfig) or not is_plain(cls, config, args, options):
        return None
    return build_plain(cls, config, session.config, resident)


def _with_resident_file(kwargs: dict[str, Any]) -> dict[str, Any]:
    """Arguments whose configuration, if one is given, names the store's weights."""
    config = kwargs.get("config")
    if not isinstance(config, PreTrainedConfig):
        return kwargs
    config = copy.deepcopy(config)
    config.quantization_config = {"quant_method": "sti"}
    config.transformers_weights = RESIDENT_FILE
    return {**kwargs, "config": config}
