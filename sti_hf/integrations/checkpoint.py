"""From a checkpoint, local or on the Hub, to a store."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedModel
from transformers.utils import logging

from sti_hf.errors import SourceError
from sti_hf.integrations.calibration_text import CalibrationText, Texts, calibration_batches
from sti_hf.integrations.checkpoint_model import NO_ARGUMENTS, checkpoint_model, source_config
from sti_hf.integrations.companion_files import companion_files, copy_companions, pickled_weights
from sti_hf.integrations.sources import CONFIG_FILE, Source, in_one_sentence
from sti_hf.integrations.weight_files import weight_files
from sti_hf.model import get_architecture
from sti_hf.model.stacks import stack_models
from sti_hf.shards.index import INDEX_FILE
from sti_hf.shards.permissions import readers_of
from sti_hf.shards.quantizers import CALIBRATED, DEFAULT_QUANTIZER, get_quantizer
from sti_hf.shards.sharding import write_store
from sti_hf.shards.store import ShardStore

if TYPE_CHECKING:
    from sti_hf.shards.quantizers.calibrated import CalibratedQuantizer

PERCENT_BAR = "{desc}: {percentage:3.0f}%|{bar}| [{elapsed}<{remaining}]"


def shard_checkpoint(
    source: str | Path,
    destination: str | Path,
    *,
    quantizer: str | None = None,
    calibration: CalibrationText | None = None,
    full: bool = True,
    model_class: type[PreTrainedModel] | None = None,
    model_arguments: Mapping[str, Any] = NO_ARGUMENTS,
    **hub: Any,
) -> ShardStore:
    """Shards a checkpoint into a store, with progress bars.

    Args:
        source: the checkpoint: a local folder or a Hub id.
        destination: the store's folder, which this makes.
        quantizer: by name; None: "calibrated" with calibration text, else `DEFAULT_QUANTIZER`.
        calibration: text for the quantizer "calibrated", such as the model will be used on. Minutes of work.
        full: keep the checkpoint's own weights too.
        model_class: what it is sharded as; None: the class that its configuration names.
        model_arguments: what the class is made with beside its configuration, such as `add_pooling_layer=False`.
        **hub: with which `from_pretrained` finds files (revision, token, subfolder, variant, use_safetensors, ...).

    Raises `STIError` with one sentence if the checkpoint is not there or its family is not supported, if it is
    damaged, quantized already, or lacks weights of its class, or there is no calibration text; `FileExistsError`, and
    `OSError` of the system, where the store cannot be written. Then nothing is left of it.
    """
    return shard_source(
        Source.of(source, **hub),
        destination,
        quantizer=quantizer,
        calibration=calibration,
        full=full,
        model_class=model_class,
        model_arguments=model_arguments,
    )


def shard_source(
    source: Source,
    destination: str | Path,
    *,
    quantizer: str | None = None,
    calibration: CalibrationText | None = None,
    full: bool = True,
    model_class: type[PreTrainedModel] | None = None,
    model_arguments: Mapping[str, Any] = NO_ARGUMENTS,
) -> ShardStore:
    """Shards a checkpoint whose files are found already (see `shard_checkpoint`)."""
    if source.find(INDEX_FILE) is not None:
        raise SourceError(f"{source.name} is a store already; shard the checkpoint that it was made from.")
    name = quantizer or (DEFAULT_QUANTIZER if calibration is None else CALIBRATED)
    if calibration is not None and name != CALIBRATED:
        raise SourceError(f"The quantizer {name!r} takes no calibration text; leave out one of the two.")
    chosen = get_quantizer(name) if calibration is None else None
    texts = calibration.read() if calibration is not None else []
    source_config(source)  # what is no checkpoint is refused as such
    companions = companion_files(source)
    weights = pickled_weights(source, companions)
    model = checkpoint_model(source, model_class, model_arguments)
    if chosen is None:
        chosen = _calibrated(model, texts, source)
    stacks = [each.config for each in stack_models(model).values()]
    layers = sum(get_architecture(config).grid(config).layers for config in stacks)
    with logging.tqdm(total=layers, desc=f"Sharding {source.name}", unit="layer") as bar:
        return write_store(
            model,
            destination,
            quantizer=chosen,
            quantizer_name=name,
            full=full,
            permissions=readers_of(source_files(source, companions)),
            extra_files=lambda folder: copy_companions(companions, weights, folder),
            progress=lambda layers: bar.update(1),
        )


def source_files(source: Source, companions: Mapping[str, Path]) -> list[Path]:
    """The files of a checkpoint that a store is made from: configuration, weights with their index, its companions."""
    config = source.find(CONFIG_FILE)
    weights = weight_files(source, source_config(source))
    return [*([config] if config is not None else []), *weights, *companions.values()]


def _calibrated(model: Any, texts: Texts, source: Source) -> CalibratedQuantizer:
    """The quantizer that these texts make for a model, which is left as it was."""
    from transformers import AutoTokenizer

    from sti_hf.shards.quantizers.calibrated import calibrate

    with in_one_sentence(f"The tokenizer of {source.name} cannot be loaded"):
        tokenizer = AutoTokenizer.from_pretrained(source.location, **source.hub)
    batches = calibration_batches(texts, tokenizer, model)
    dtype = model.dtype
    model.float()
    try:
        with logging.tqdm(desc=f"Calibrating {source.name}", bar_format=PERCENT_BAR) as bar:

            def advance(done: int, total: int) -> None:
                bar.total = total
                bar.update(done)

            return calibrate(model, batches, progress=advance)
    finally:
        model.to(dtype)  # exact: every value of the narrower dtypes is one of float32
