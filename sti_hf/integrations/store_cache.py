"""The cache of stores: a checkpoint is sharded once for each class, quantizer and state of its files."""

from __future__ import annotations

import errno
import hashlib
import inspect
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from huggingface_hub.constants import HF_HOME
from transformers import AutoConfig, PreTrainedModel

from sti_hf.errors import STIError, StoreError
from sti_hf.forking import ThreadsLock
from sti_hf.integrations.checkpoint import shard_source, source_files
from sti_hf.integrations.checkpoint_model import NO_ARGUMENTS, source_config
from sti_hf.integrations.companion_files import companion_files
from sti_hf.integrations.model_classes import named_class
from sti_hf.integrations.sources import CONFIG_FILE, Source, in_one_sentence
from sti_hf.shards.index import FORMAT_VERSION, INDEX_FILE
from sti_hf.shards.store import ShardStore, is_store

NOT_WRITABLE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EEXIST, errno.ENOTDIR, errno.ENOSPC, errno.EDQUOT)

_sharding = ThreadsLock()
"""Held while a checkpoint is loaded: Transformers' loader replaces functions for the whole process, and two at once
would put back each other's."""


def cache_home() -> Path:
    """Where stores and device profiles are kept: `$STI_HOME`, else `sti` under `$HF_HOME`."""
    return Path(os.environ.get("STI_HOME") or Path(HF_HOME) / "sti")


def resolve_store(
    source: str | Path,
    quantizer: str,
    model_class: type[PreTrainedModel] | None = None,
    model_arguments: Mapping[str, Any] = NO_ARGUMENTS,
    **hub: Any,
) -> ShardStore:
    """The store that `source` is, or the one its checkpoint has been sharded into in the cache (now, if need be).

    `model_class` is what the checkpoint is sharded as (None: the class that its configuration names), made with
    `model_arguments`; `hub` are the arguments with which `from_pretrained` finds files.
    Raises what `shard_checkpoint` does, and `StoreError` where a store has to be made and the cache cannot be written.
    """
    files = Source.of(source, **hub)
    index = files.find(INDEX_FILE)
    if index is not None:
        return ShardStore.open(index.parent if files.folder is not None else _fetched(files, index))
    path = cache_home() / "stores" / _name(files, quantizer, model_class, model_arguments)
    if is_store(path):
        return ShardStore.open(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _sharding:
            if is_store(path):  # another thread has written it meanwhile
                return ShardStore.open(path)
            return shard_source(
                files, path, quantizer=quantizer, model_class=model_class, model_arguments=model_arguments
            )
    except OSError as error:
        if is_store(path):  # another process has written it meanwhile
            return ShardStore.open(path)
        elsewhere = error.filename is not None and not Path(error.filename).is_relative_to(cache_home())
        if isinstance(error, STIError) or elsewhere or error.errno not in NOT_WRITABLE:
            raise
        raise StoreError(
            f"The cache {cache_home()} cannot take the store of {source} ({error.strerror}): set STI_HOME to a folder "
            f"that can be written to, or make the store where you like with `sti shard {source} STORE` and load that."
        ) from error


def _fetched(source: Source, index: Path) -> Path:
    """The local snapshot of a store on the Hub, all of it."""
    from huggingface_hub import snapshot_download

    arguments = dict(source.hub)
    subfolder, _ = arguments.pop("subfolder", ""), arguments.pop("proxies", None)
    snapshot_download(source.name, allow_patterns=f"{subfolder}/*" if subfolder else None, **arguments)
    return index.parent


def _name(
    source: Source, quantizer: str, model_class: type[PreTrainedModel] | None, model_arguments: Mapping[str, Any]
) -> str:
    """Names the cached store of a checkpoint as it is now: whatever gives another store gives another name."""
    if source.folder is not None:
        state = [_file_state(path) for path in source_files(source, companion_files(source))]
    else:
        # The snapshot's folder is named by the commit, so its path names the content of every file.
        source_config(source)
        state = [str(source.find(CONFIG_FILE)), str(source.variant), str(source.use_safetensors)]
    made_as = [_class_state(source, model_class), repr(sorted(model_arguments.items()))]
    key = "\n".join([*state, *made_as, quantizer, str(FORMAT_VERSION)])
    name = Path(source.location).resolve().name if source.folder is not None else source.name.rpartition("/")[2]
    return f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}"


def _file_state(path: Path) -> str:
    """What changes whenever a file does.

    Size and time of modification alone do not: `cp -p`, `rsync -t` and `touch -r` set the time back. Nobody can set
    back the time of the last change (ctime), and another file of that name has another inode.
    """
    state = path.stat()
    return f"{path.resolve()} {state.st_size} {state.st_mtime_ns} {state.st_ctime_ns} {state.st_ino}"


def _class_state(source: Source, model_class: type[PreTrainedModel] | None) -> str:
    """Names the class that decides what is sharded, and the code of a class that is not Transformers' own."""
    if model_class is None:
        with in_one_sentence(f"Transformers cannot read the config.json of {source.name}"):
            config = AutoConfig.from_pretrained(source.location, trust_remote_code=False, **source.hub)
        model_class = named_class(config)
    if model_class is None:
        return "encoder"
    name = f"{model_class.__module__}.{model_class.__qualname__}"
    if model_class.__module__.startswith("transformers."):
        return name
    try:
        return f"{name} {_file_state(Path(inspect.getfile(model_class)))}"
    except (OSError, TypeError):  # made in an interactive session
        return name
