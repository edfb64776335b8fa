"""From a model in memory to a store on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import save
from torch import Tensor

from sti_hf import native
from sti_hf.errors import SourceError, UnsupportedModelError
from sti_hf.model.stacks import STACKED, stack_models, stack_prefix
from sti_hf.process_memory import page_out
from sti_hf.shards.index import INDEX_FILE, StackIndex, StoreIndex, Table
from sti_hf.shards.permissions import EVERYBODY
from sti_hf.shards.quantizers import ModelQuantizer
from sti_hf.shards.safetensors_file import SafetensorsWriter
from sti_hf.shards.stack_writing import StackWriter, refuse_not_finite
from sti_hf.shards.store import RESIDENT_FILE, TABLES_FILE, ShardStore
from sti_hf.shards.whole import whole_or_absent
from sti_hf.shards.writing import SAFETENSORS_DTYPE, WrittenLayer, bytes_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARDS_FILE = "shards-{:05d}-of-{:05d}.safetensors"
ONE_SHARDS_FILE = SHARDS_FILE.format(1, 1)
"""Of a model with one stack."""

VOCABULARY_FILE = "vocabulary-{:05d}-of-{:05d}.safetensors"


def write_store(
    model: PreTrainedModel,
    destination: str | Path,
    *,
    quantizer: ModelQuantizer | Mapping[str, ModelQuantizer],
    quantizer_name: str,
    full: bool = True,
    slice_order: Sequence[Sequence[int]] | None = None,
    permissions: int = EVERYBODY,
    extra_files: Callable[[Path], None] = lambda folder: None,
    progress: Callable[[int], None] = lambda layers: None,
) -> ShardStore:
    """Shards a Transformers model into a store at `destination`, whole or not at all.

    `quantizer` is one for all stacks, or one for each by its path. `slice_order[l]` puts the slices of layer l in
    order (default: the checkpoint's), in a model with one stack; `full=False` leaves the full weights out;
    `permissions` is a mask for the modes of what is written. `extra_files` may add files (the tokenizer) to the
    folder; `progress` is called with the number of layers done. Raises `FileExistsError` if the destination exists,
    `UnsupportedModelError` if the model cannot be sharded, `SourceError` if a weight is not finite.
    """
    destination = Path(destination).absolute()
    stacks = _stacks(model, slice_order)
    with ExitStack() as split, whole_or_absent(destination, permissions) as folder:
        for stack in stacks.values():
            split.enter_context(stack.in_parts())
        dtype = _weight_dtype(stacks.values())
        tables = _write_tables(stacks, folder)
        _write_resident(model, stacks, folder)
        layers: dict[str, list[WrittenLayer]] = {}
        vocabularies: dict[str, StackIndex | None] = {}
        for path, stack in stacks.items():
            chosen = quantizer[path] if isinstance(quantizer, Mapping) else quantizer
            before = sum(map(len, layers.values()))
            layers[path] = stack.write_layers(folder, chosen, full, partial(_count_on, progress, before))
            vocabularies[path] = stack.write_vocabulary(folder, chosen.vocabulary)
        _write_config(model, stacks, folder, quantizer_name)
        extra_files(folder)
        files = [stack.shards_file for stack in stacks.values()]
        files += [stacks[path].vocabulary_file for path, written in vocabularies.items() if written is not None]
        index = StoreIndex(
            model_type=model.config.model_type,
            quantizer=quantizer_name,
            has_scales=any(layer.has_scales for written in layers.values() for layer in written),
            full_dtype=str(dtype).removeprefix("torch.") if full else None,
            stacks={
                path: stack.index(layers[path], tables[path], vocabularies[path]) for path, stack in stacks.items()
            },
            files={name: (folder / name).stat().st_size for name in (RESIDENT_FILE, TABLES_FILE, *files)},
            resident_checksum=native.crc32c((folder / RESIDENT_FILE).read_bytes()),
            fingerprint=fingerprint(model.state_dict()),
        )
        # Written last: a folder without it does not open, so an interrupted write leaves no store.
        (folder / INDEX_FILE).write_text(index.to_json())
    return ShardStore.open(destination)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Names the content of a checkpoint: SHA-256 over names, shapes, dtypes and CRC-32C of all its tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        checksum = native.crc32c(bytes_of(tensor))
        page_out(tensor)  # else the whole checkpoint would be in memory in the end
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {checksum}\n".encode())
    return digest.hexdigest()


def _stacks(model: PreTrainedModel, slice_order: Sequence[Sequence[int]] | None) -> dict[str, StackWriter]:
    models = stack_models(model)
    if slice_order is not None and len(models) != 1:
        raise UnsupportedModelError(
            f"{type(model).__name__} has {len(models)} stacks, and an order of slices is for one."
        )
    return {
        path: StackWriter(
            each,
            stack_prefix(model, path),
            SHARDS_FILE.format(number, len(models)),
            VOCABULARY_FILE.format(number, len(models)),
            slice_order,
        )
        for number, (path, each) in enumerate(models.items(), 1)
    }


def _count_on(progress: Callable[[int], None], before: int, done: int) -> None:
    progress(before + done)


def _weight_dtype(stacks: Iterable[StackWriter]) -> torch.dtype:
    linears = [linear for stack in stacks for layer in stack.linears for linear in layer.values()]
    dtypes = {linear.weight.dtype for linear in linears}
    if len(dtypes) != 1 or not dtypes <= set(SAFETENSORS_DTYPE):
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise SourceError(
            f"The weights of the layers are {found}: they must all be of one dtype, float32, float16 or bfloat16."
        )
    return dtypes.pop()


def _write_tables(stacks: Mapping[str, StackWriter], folder: Path) -> dict[str, dict[str, Table]]:
    """The tables of every stack, by its path."""
    with SafetensorsWriter(folder / TABLES_FILE, 2 * sum(len(stack.tables()) for stack in stacks.values())) as writer:
        return {path: stack.write_tables(writer) for path, stack in stacks.items()}


def _write_resident(model: PreTrainedModel, stacks: Mapping[str, StackWriter], folder: Path) -> None:
    """Everything that is neither sliced nor read by row, biases in slice order, tied tensors once."""
    left_out = set().union(*(stack.keys() for stack in stacks.values()))
    resident: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if name not in left_out and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            refuse_not_finite(name, tensor)
            resident[name] = tensor.detach().clone()
    for stack in stacks.values():
        stack.permute_biases(resident)
    # Not `save_file`: it gives modes of its own.
    (folder / RESIDENT_FILE).write_bytes(save(resident, metadata={"format": "pt"}))


def _write_config(
    model: PreTrainedModel, stacks: Mapping[str, StackWriter], folder: Path, quantizer_name: str
) -> None:
    config: dict[str, Any] = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    for path, field in STACKED.get(model.config.model_type, {}).items():
        if path in stacks:
            config[field]["architectures"] = [type(stacks[path].model).__name__]
    config["quantization_config"] = {"quant_method": "sti", "quantizer": quantizer_name}
    config["transformers_weights"] = RESIDENT_FILE
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
