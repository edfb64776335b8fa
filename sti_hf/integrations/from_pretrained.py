"""`from_pretrained(..., sti_config=...)`, on every model class of Transformers."""

from __future__ import annotations

import copy
import functools
import threading
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from sti_hf import native
from sti_hf.config import STIConfig
from sti_hf.integrations.checkpoint import resolve_store
from sti_hf.integrations.quantizer import is_loading, loading
from sti_hf.integrations.session import open_session
from sti_hf.runtime.buffers import allocate
from sti_hf.shards.store import RESIDENT_FILE, ShardStore, StoreError, is_store, store_defaults

RESIDENT_BLOCK = 1 << 20
HUB_ARGUMENTS = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")


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
    hub = {name: kwargs[name] for name in HUB_ARGUMENTS if kwargs.get(name)}
    store = resolve_store(source, sti_config.quantizer, **hub)
    session = open_session(store, sti_config, cls)
    errors: list[Exception] = []
    try:
        resident = threading.Thread(target=_warm_resident, args=(store, errors), daemon=True)
        resident.start()
        config = kwargs.pop("config", None)
        if isinstance(config, PreTrainedConfig):
            config = copy.deepcopy(config)
            config.quantization_config = {"quant_method": "sti"}
            config.transformers_weights = RESIDENT_FILE
            kwargs["config"] = config
        try:
            with loading(session):
                loaded = stock(cls, store.path, *args, **{k: v for k, v in kwargs.items() if k not in HUB_ARGUMENTS})
        finally:
            resident.join()
            if errors:  # whatever Transformers made of damaged weights
                raise errors[0]
    except BaseException:
        session.close()
        raise
    model = loaded[0] if isinstance(loaded, tuple) else loaded
    model.config.name_or_path = str(source)
    return loaded


def _warm_resident(store: ShardStore, errors: list[Exception]) -> None:
    """Reads the resident weights in one go and checks them, while the model is being built: what Transformers then
    maps is already in the page cache."""
    checksum, block = 0, allocate(RESIDENT_BLOCK)
    with (store.path / RESIDENT_FILE).open("rb", buffering=0) as file:
        while read := file.readinto(block.data):
            checksum = native.crc32c(block[:read], checksum)
    if checksum != store.index.resident_checksum:
        errors.append(
            StoreError(f"{store.path / RESIDENT_FILE} is damaged: its checksum does not match; run `sti verify`.")
        )
