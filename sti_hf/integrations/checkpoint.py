"""From a checkpoint, local or on the Hub, to a store; and the cache of stores."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import transformers
from huggingface_hub.constants import HF_HOME
from safetensors import SafetensorError
from transformers import MODEL_MAPPING, AutoConfig, PreTrainedConfig, PreTrainedModel
from transformers.utils import cached_file, logging

from sti_hf.architectures import get_architecture
from sti_hf.errors import SourceError, SourceNotFoundError
from sti_hf.integrations.calibration_text import CalibrationText, Texts, calibration_batches
from sti_hf.shards.quantizers import CALIBRATED, DEFAULT_QUANTIZER, get_quantizer
from sti_hf.shards.sharding import write_store
from sti_hf.shards.store import FORMAT_VERSION, INDEX_FILE, ShardStore, is_store

if TYPE_CHECKING:
    from sti_hf.shards.quantizers.calibrated import CalibratedQuantizer

PERCENT_BAR = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "sentencepiece.bpe.model",
    "spiece.model",
)


def cache_home() -> Path:
    """Where stores and device profiles are kept: `$STI_HOME`, else `sti` under `$HF_HOME`."""
    return Path(os.environ.get("STI_HOME") or Path(HF_HOME) / "sti")


def shard_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    quantizer: str | None = None,
    calibration: CalibrationText | None = None,
    full: bool = True,
    **hub: Any,
) -> ShardStore:
    """Shards a checkpoint into a store, with progress bars.

    Args:
        source: the checkpoint: a local folder or a Hub id.
        destination: the store's folder, which this makes.
        quantizer: by name; None: "calibrated" with calibration text, else `DEFAULT_QUANTIZER`.
        calibration: text for the quantizer "calibrated", such as the model will be used on. Minutes of work.
        full: keep the checkpoint's own weights too.
        **hub: with which `from_pretrained` finds files on the Hub (revision, token, ...).

    Raises `ValueError` or `OSError` with one sentence if the checkpoint is not there or its family is not supported,
    if it is damaged, or lacks weights of its layers, or there is no calibration text.
    """
    _check_source(source)
    if is_store(source):
        raise SourceError(f"{source} is a store already; shard the checkpoint that it was made from.")
    name = quantizer or (DEFAULT_QUANTIZER if calibration is None else CALIBRATED)
    if calibration is not None and name != CALIBRATED:
        raise SourceError(f"The quantizer {name!r} takes no calibration text; leave out one of the two.")
    chosen = get_quantizer(name) if calibration is None else None
    texts = calibration.read() if calibration is not None else []
    config = AutoConfig.from_pretrained(source, **hub)
    grid = get_architecture(config).grid(config)
    model_class: Any = stock_class(config)
    try:
        model, loaded = model_class.from_pretrained(
            source, config=config, dtype="auto", output_loading_info=True, **hub
        )
    except SafetensorError as error:
        raise SourceError(f"The weights of {source} are damaged or incomplete ({error}); fetch them again.") from error
    if chosen is None:
        chosen = _calibrated(model, texts, source, **hub)
    with logging.tqdm(total=grid.layers, desc=f"Sharding {source}", unit="layer") as bar:
        return write_store(
            model,
            destination,
            quantizer=chosen,
            quantizer_name=name,
            full=full,
            missing=loaded["missing_keys"],
            extra_files=_tokenizer_writer(source, **hub),
            progress=lambda layers: bar.update(1),
        )


def _calibrated(model: Any, texts: Texts, source: str | Path, **hub: Any) -> CalibratedQuantizer:
    """The quantizer that these texts make for a model, which is left as it was."""
    from transformers import AutoTokenizer

    from sti_hf.shards.quantizers.calibrated import calibrate

    batches = calibration_batches(texts, AutoTokenizer.from_pretrained(source, **hub), model)
    dtype = model.dtype
    model.float()
    try:
        with logging.tqdm(desc=f"Calibrating {source}", bar_format=PERCENT_BAR) as bar:

            def advance(done: int, total: int) -> None:
                bar.total = total
                bar.update(done)

            return calibrate(model, batches, progress=advance)
    finally:
        model.to(dtype)  # exact: every value of the narrower dtypes is one of float32


def _check_source(source: str | Path) -> None:
    if not Path(source).is_dir() and not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", str(source)):
        raise SourceNotFoundError(
            f"There is no folder {source}, and it is not the id of a repository on the Hub either."
        )


def stock_class(config: PreTrainedConfig) -> type[PreTrainedModel]:
    """The Transformers class that a checkpoint was saved from; the bare encoder where its configuration names none."""
    for name in config.architectures or []:
        if hasattr(transformers, name):
            return getattr(transformers, name)
    bare: Any = MODEL_MAPPING[type(config)]
    return bare


def _tokenizer_writer(source: str | Path, **hub: Any) -> Callable[[Path], None]:
    """Copies the tokenizer as it is. To load and save it would give a checkpoint without one an empty one."""

    def write(folder: Path) -> None:
        for name in TOKENIZER_FILES:
            found = cached_file(str(source), name, _raise_exceptions_for_missing_entries=False, **hub)
            if found is not None:
                shutil.copyfile(found, folder / name)

    return write


def resolve_store(source: str | Path, quantizer: str, **hub: Any) -> ShardStore:
    """The store that `source` is, or the one its checkpoint has been sharded into in the cache (now, if need be)."""
    _check_source(source)
    if Path(source).is_dir():
        source = Path(source) / hub.pop("subfolder", "")
    if is_store(source):
        return ShardStore.open(source)
    on_hub = None if Path(source).is_dir() else _hub_store(str(source), **hub)
    if on_hub is not None:
        return ShardStore.open(on_hub)
    path = cache_home() / "stores" / _cache_name(source, quantizer, **hub)
    if is_store(path):
        return ShardStore.open(path)
    try:
        return shard_checkpoint(source, path, quantizer=quantizer, **hub)
    except OSError:
        if is_store(path):  # another process has written it meanwhile
            return ShardStore.open(path)
        raise


def _hub_store(source: str, **hub: Any) -> Path | None:
    """The local snapshot of a store on the Hub, or None where the repository is not a store."""
    index = cached_file(source, INDEX_FILE, _raise_exceptions_for_missing_entries=False, **hub)
    if index is None:
        return None
    from huggingface_hub import snapshot_download

    kept = ("cache_dir", "force_download", "local_files_only", "revision", "token")
    return Path(snapshot_download(source, **{name: hub[name] for name in kept if hub.get(name) is not None}))


def _cache_name(source: str | Path, quantizer: str, **hub: Any) -> str:
    """Names the cached store of a checkpoint as it is now: another revision or a changed file gives another name."""
    folder = Path(source)
    if folder.is_dir():
        files = sorted(path for path in folder.resolve().iterdir() if path.is_file())
        state = [f"{path} {path.stat().st_size} {path.stat().st_mtime_ns}" for path in files]
    else:
        # The snapshot's folder is named by the commit, so its path names the revision.
        state = [str(cached_file(str(source), "config.json", **hub))]
    key = hashlib.sha256("\n".join([*state, quantizer, str(FORMAT_VERSION)]).encode()).hexdigest()[:16]
    return f"{folder.name}-{key}"
