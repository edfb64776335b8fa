"""From a model in memory to a store on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from sti_hf import native
from sti_hf.architectures import Architecture, get_architecture
from sti_hf.architectures.base import WORD_EMBEDDINGS, base_prefix
from sti_hf.architectures.grid import Grid
from sti_hf.errors import SourceError
from sti_hf.process_memory import page_out, return_freed_memory
from sti_hf.shards.layout import KINDS, PLANES, LayerLayout
from sti_hf.shards.partition import permute_biases, split_layer
from sti_hf.shards.quantizers import QuantizedLayer, Quantizer
from sti_hf.shards.safetensors_file import SafetensorsWriter
from sti_hf.shards.store import (
    INDEX_FILE,
    RESIDENT_FILE,
    TABLES_FILE,
    ShardStore,
    StoreIndex,
    Table,
)
from sti_hf.shards.whole import whole_or_absent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARDS_FILE = "shards-00001-of-00001.safetensors"
SAFETENSORS_DTYPE = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16"}


@dataclass(frozen=True)
class WrittenLayer:
    """Where a layer was written: `header_bytes` of every slice, `checksums` uint32 `[KINDS, M]`."""

    offset: int
    header_bytes: tuple[int, ...]
    checksums: np.ndarray


def write_store(
    model: PreTrainedModel,
    destination: str | Path,
    *,
    quantizer: Quantizer,
    quantizer_name: str,
    full: bool = True,
    slice_order: Sequence[Sequence[int]] | None = None,
    missing: Collection[str] = (),
    extra_files: Callable[[Path], None] = lambda folder: None,
    progress: Callable[[int], None] = lambda layers: None,
) -> ShardStore:
    """Shards a Transformers model into a store at `destination`, whole or not at all.

    `slice_order[l]` puts the slices of layer l in order (default: the checkpoint's); `full=False` leaves the full
    weights out; `missing` names weights that the checkpoint did not have (a head, say): the store has none of them
    either, and Transformers makes them anew on loading, with its warning. `extra_files` may add files (the tokenizer)
    to the folder; `progress` is called with the number of layers done. Raises `FileExistsError` if the destination
    exists, `ValueError` if the model cannot be sharded.
    """
    destination = Path(destination)
    architecture = get_architecture(model.config)
    grid = architecture.grid(model.config)
    order = [tuple(map(int, layer)) for layer in slice_order or [range(grid.slices)] * grid.layers]
    base = model.base_model
    layers: Any = base.get_submodule(architecture.layers)
    with whole_or_absent(destination) as folder:
        tables, table_keys = _write_tables(model, architecture, folder)
        left_out = _sliced_weight_keys(model, architecture) | table_keys
        _refuse_missing(left_out.intersection(missing))
        resident = _resident(model, architecture, grid, order, left_out.union(missing))
        save_file(resident, folder / RESIDENT_FILE, metadata={"format": "pt"})
        dtype = _weight_dtype(layers[0], architecture)
        written = []
        with SafetensorsWriter(folder / SHARDS_FILE, grid.layers) as writer:
            for layer, module in enumerate(layers):
                shards = split_layer(_layer_weights(module, architecture), architecture.matrices, grid, order[layer])
                quantized = quantizer.quantize_layer(layer, shards.float(), grid)
                written.append(_write_layer(writer, layer, quantized, shards if full else None))
                for weight in _layer_weights(module, architecture).values():
                    page_out(weight)
                return_freed_memory()
                progress(layer + 1)
        _write_config(model, folder, quantizer_name)
        extra_files(folder)
        resident_bytes = (folder / RESIDENT_FILE).read_bytes()
        index = StoreIndex(
            model_type=model.config.model_type,
            grid=grid,
            quantizer=quantizer_name,
            has_scales=quantized.scales is not None,
            full_dtype=str(dtype).removeprefix("torch.") if full else None,
            slice_order=tuple(order),
            layer_files=(SHARDS_FILE,) * grid.layers,
            layer_offsets=tuple(layer.offset for layer in written),
            header_bytes=tuple(layer.header_bytes for layer in written),
            checksums=np.stack([layer.checksums for layer in written]),
            tables=tables,
            files={name: (folder / name).stat().st_size for name in (RESIDENT_FILE, TABLES_FILE, SHARDS_FILE)},
            resident_checksum=native.crc32c(resident_bytes),
            fingerprint=fingerprint(model.state_dict()),
        )
        # Written last: a folder without it does not open, so an interrupted write leaves no store.
        (folder / INDEX_FILE).write_text(index.to_json())
    return ShardStore.open(destination)


def fingerprint(state: Mapping[str, Tensor]) -> str:
    """Names the content of a checkpoint: SHA-256 over names, shapes, dtypes and CRC-32C of all its tensors."""
    digest = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        checksum = native.crc32c(_bytes_of(tensor))
        page_out(tensor)  # else the whole checkpoint would be in memory in the end
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype} {checksum}\n".encode())
    return digest.hexdigest()


def _bytes_of(tensor: Tensor) -> np.ndarray:
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8).numpy()


def _layer_weights(layer: nn.Module, architecture: Architecture) -> dict[str, Tensor]:
    return {matrix.name: _weight(layer, matrix.module) for matrix in architecture.matrices}


def _weight(module: nn.Module, path: str) -> Tensor:
    return module.get_submodule(path).get_parameter("weight").detach()


def _weight_dtype(layer: nn.Module, architecture: Architecture) -> torch.dtype:
    dtypes = {weight.dtype for weight in _layer_weights(layer, architecture).values()}
    if len(dtypes) != 1 or not dtypes <= set(SAFETENSORS_DTYPE):
        raise SourceError(f"The layers' weights have dtypes {dtypes}; load the checkpoint in one floating dtype.")
    return dtypes.pop()


def _refuse_missing(names: set[str]) -> None:
    if names:
        raise SourceError(
            f"The checkpoint lacks {len(names)} weights that a store cannot do without, such as {min(names)}: it is "
            "damaged, or of another model than its config.json says."
        )


def _sliced_weight_keys(model: PreTrainedModel, architecture: Architecture) -> set[str]:
    layers = f"{base_prefix(model)}{architecture.layers}"
    count = architecture.grid(model.config).layers
    return {f"{layers}.{i}.{matrix.module}.weight" for i in range(count) for matrix in architecture.matrices}


def _resident(
    model: PreTrainedModel, architecture: Architecture, grid: Grid, order: Sequence[Sequence[int]], left_out: set[str]
) -> dict[str, Tensor]:
    """Everything that is neither sliced nor read by row, biases in slice order, tied tensors once."""
    resident: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if name not in left_out and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            resident[name] = tensor.detach().clone()
    permute_biases(resident, architecture, grid, order)
    return resident


def _write_tables(
    model: PreTrainedModel, architecture: Architecture, folder: Path
) -> tuple[dict[str, Table], set[str]]:
    """Writes the embeddings and any untied decoder; returns the tables and the keys they take the place of."""
    paths = architecture.embeddings(model.config)
    weights = {name: _weight(model.base_model, path) for name, path in paths.items()}
    decoders: dict[str, list[str]] = {name: [] for name in paths}
    keys = {f"{base_prefix(model)}{path}.weight" for path in paths.values()}
    modules = {name for name, _ in model.named_modules()}
    for path in modules.intersection(architecture.lm_decoders):
        keys.add(f"{path}.weight")
        weight = _weight(model, path)
        name = WORD_EMBEDDINGS if weight.data_ptr() == weights[WORD_EMBEDDINGS].data_ptr() else path
        weights.setdefault(name, weight)
        decoders.setdefault(name, []).append(path)
    tables = {}
    with SafetensorsWriter(folder / TABLES_FILE, 2 * len(weights)) as writer:
        for name, weight in weights.items():
            tables[name] = _write_table(writer, name, weight, tuple(decoders[name]))
            page_out(weight)
    return tables, keys


def _write_table(writer: SafetensorsWriter, name: str, weight: Tensor, decoders: tuple[str, ...]) -> Table:
    """Writes a table and its rows' checksums, which stand behind it: so the first table begins on a block."""
    rows, columns = weight.shape
    raw = _bytes_of(weight).reshape(rows, -1)
    offset = writer.position
    writer.append(raw)
    writer.finish_tensor(f"{name}.weight", SAFETENSORS_DTYPE[weight.dtype], (rows, columns))
    checksums_offset = writer.position
    writer.append(np.array([native.crc32c(row) for row in raw], dtype="<u4"))
    writer.finish_tensor(f"{name}.crc32c", "U32", (rows,))
    return Table(offset, rows, columns, str(weight.dtype).removeprefix("torch."), checksums_offset, decoders)


def _write_layer(
    writer: SafetensorsWriter, layer: int, quantized: QuantizedLayer, full: Tensor | None
) -> WrittenLayer:
    grid = quantized.grid
    offset = writer.position
    checksums = np.zeros((KINDS, grid.slices), dtype=np.uint32)
    headers = [_header(quantized, index) for index in range(grid.slices)]
    for index, header in enumerate(headers):
        checksums[0, index] = writer.append(header)
    codes = quantized.codes.numpy()
    for plane in range(1, PLANES + 1):
        bits = np.packbits((codes >> (PLANES - plane)) & 1, axis=-1, bitorder="little")
        for index in range(grid.slices):
            piece = np.concatenate((_plane_prefix(quantized, plane, index), bits[index].reshape(-1)))
            checksums[plane, index] = writer.append(piece)
    for index in range(grid.slices):
        checksums[-1, index] = writer.append(_bytes_of(full[index]) if full is not None else np.empty(0, np.uint8))
    writer.pad()
    writer.finish_tensor(f"layers.{layer}", "U8", (writer.position - offset,))
    written = WrittenLayer(offset, tuple(len(header) for header in headers), checksums)
    itemsize = full.element_size() if full is not None else 0
    layout = LayerLayout(grid, offset, written.header_bytes, itemsize, quantized.scales is not None)
    if layout.region_bytes != writer.position - offset:
        raise AssertionError(f"layer {layer} was not written as its layout says")
    return written


def _header(quantized: QuantizedLayer, index: int) -> np.ndarray:
    """uint8: the header piece of slice `index` (see `layout`)."""
    if quantized.outliers is None:
        return np.zeros(len(quantized.grid.rows), dtype="<u4").view(np.uint8)
    outliers = quantized.outliers[index]
    parts = (outliers.counts.numpy().astype("<u4"), outliers.positions.numpy().astype("<u4"), outliers.values.numpy())
    return np.concatenate([part.view(np.uint8) for part in parts])


def _plane_prefix(quantized: QuantizedLayer, plane: int, index: int) -> np.ndarray:
    """uint8: what stands before the bits of a plane's piece: codebooks and row scales."""
    if plane < 2:
        return np.empty(0, np.uint8)
    parts = [quantized.codebooks[plane][index].numpy().reshape(-1)]
    if quantized.scales is not None:
        scales = quantized.scales[plane][index].numpy()
        parts.append(np.pad(scales, (0, len(scales) % 2)))
    return np.concatenate([part.view(np.uint8) for part in parts])


def _write_config(model: PreTrainedModel, folder: Path, quantizer_name: str) -> None:
    config: dict[str, Any] = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    config["quantization_config"] = {"quant_method": "sti", "quantizer": quantizer_name}
    config["transformers_weights"] = RESIDENT_FILE
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
