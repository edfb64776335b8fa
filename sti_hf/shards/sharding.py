"""From a model in memory to a store on disk."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import save
from torch import Tensor, nn

from sti_hf import native
from sti_hf.errors import SourceError, UnsupportedModelError
from sti_hf.model import Architecture, get_architecture
from sti_hf.model.architecture import WORD_EMBEDDINGS, base_prefix
from sti_hf.model.fused import in_parts
from sti_hf.model.grid import Grid
from sti_hf.process_memory import page_out, return_freed_memory
from sti_hf.shards.partition import permute_biases, split_layer
from sti_hf.shards.permissions import EVERYBODY
from sti_hf.shards.quantizers import Quantizer
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
from sti_hf.shards.writing import SAFETENSORS_DTYPE, bytes_of, write_layer, write_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel

SHARDS_FILE = "shards-00001-of-00001.safetensors"


def write_store(
    model: PreTrainedModel,
    destination: str | Path,
    *,
    quantizer: Quantizer,
    quantizer_name: str,
    full: bool = True,
    slice_order: Sequence[Sequence[int]] | None = None,
    permissions: int = EVERYBODY,
    extra_files: Callable[[Path], None] = lambda folder: None,
    progress: Callable[[int], None] = lambda layers: None,
) -> ShardStore:
    """Shards a Transformers model into a store at `destination`, whole or not at all.

    `slice_order[l]` puts the slices of layer l in order (default: the checkpoint's); `full=False` leaves the full
    weights out; `permissions` is a mask for the modes of what is written. `extra_files` may add files (the tokenizer)
    to the folder; `progress` is called with the number of layers done. Raises `FileExistsError` if the destination
    exists, `UnsupportedModelError` if the model cannot be sharded, `SourceError` if a weight is not finite.
    """
    destination = Path(destination).absolute()
    architecture = get_architecture(model.config)
    grid = architecture.grid(model.config)
    order = [tuple(map(int, layer)) for layer in slice_order or [range(grid.slices)] * grid.layers]
    with in_parts(model, architecture), whole_or_absent(destination, permissions) as folder:
        dtype = _weight_dtype(_linears(model, architecture, grid))
        matrix_paths = _matrix_paths(model, architecture, grid)
        tables, table_keys = _write_tables(model, architecture, folder)
        left_out = {f"{path}.weight" for paths in matrix_paths for path in paths.values()}
        resident = _resident(model, architecture, grid, order, left_out | table_keys)
        # Not `save_file`: it gives modes of its own.
        (folder / RESIDENT_FILE).write_bytes(save(resident, metadata={"format": "pt"}))
        written = []
        with SafetensorsWriter(folder / SHARDS_FILE, grid.layers) as writer:
            for layer, paths in enumerate(matrix_paths):
                weights = _matrices(model, paths)
                shards = split_layer(weights, architecture.matrices, grid, order[layer])
                quantized = quantizer.quantize_layer(layer, shards.float(), grid)
                written.append(write_layer(writer, layer, quantized, shards if full else None))
                for weight in weights.values():
                    page_out(weight)
                return_freed_memory()
                progress(layer + 1)
        _write_config(model, folder, quantizer_name)
        extra_files(folder)
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


def _linears(model: PreTrainedModel, architecture: Architecture, grid: Grid) -> list[dict[str, nn.Linear]]:
    """Every layer's linears. Raises `UnsupportedModelError` where they are not where the family has them."""
    try:
        linears = architecture.linears(model)
    except AttributeError:
        linears = []
    if len(linears) != grid.layers:
        raise UnsupportedModelError(
            f"{type(model).__name__} cannot be sharded: it has not the {grid.layers} layers of its configuration at "
            f"{base_prefix(model)}{architecture.layers}, as {model.config.model_type} models have them."
        )
    return linears


def _weight(module: nn.Module, path: str) -> Tensor:
    return module.get_submodule(path).get_parameter("weight").detach()


def _weight_dtype(linears: list[dict[str, nn.Linear]]) -> torch.dtype:
    dtypes = {linear.weight.dtype for layer in linears for linear in layer.values()}
    if len(dtypes) != 1 or not dtypes <= set(SAFETENSORS_DTYPE):
        found = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes))
        raise SourceError(
            f"The weights of the layers are {found}: they must all be of one dtype, float32, float16 or bfloat16."
        )
    return dtypes.pop()


def _refuse_not_finite(name: str, tensor: Tensor) -> None:
    if tensor.is_floating_point() and tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise SourceError(f"The weight {name} holds values that are not finite (NaN or infinite): it is damaged.")


def _matrix_paths(model: PreTrainedModel, architecture: Architecture, grid: Grid) -> list[dict[str, str]]:
    """For every layer, the paths of its matrices in the model, by their names."""
    layers = f"{base_prefix(model)}{architecture.layers}"
    return [
        {matrix.name: f"{layers}.{layer}.{matrix.module}" for matrix in architecture.matrices}
        for layer in range(grid.layers)
    ]


def _matrices(model: PreTrainedModel, paths: Mapping[str, str]) -> dict[str, Tensor]:
    weights = {name: _weight(model, path) for name, path in paths.items()}
    for name, weight in weights.items():
        _refuse_not_finite(f"{paths[name]}.weight", weight)
    return weights


def _resident(
    model: PreTrainedModel, architecture: Architecture, grid: Grid, order: Sequence[Sequence[int]], left_out: set[str]
) -> dict[str, Tensor]:
    """Everything that is neither sliced nor read by row, biases in slice order, tied tensors once."""
    resident: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict().items():
        if name not in left_out and tensor.data_ptr() not in seen:
            seen.add(tensor.data_ptr())
            _refuse_not_finite(name, tensor)
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
        words = weights.get(WORD_EMBEDDINGS)
        name = WORD_EMBEDDINGS if words is not None and weight.data_ptr() == words.data_ptr() else path
        weights.setdefault(name, weight)
        decoders.setdefault(name, []).append(path)
    tables = {}
    with SafetensorsWriter(folder / TABLES_FILE, 2 * len(weights)) as writer:
        for name, weight in weights.items():
            _refuse_not_finite(f"{name}.weight", weight)
            tables[name] = write_table(writer, name, weight, tuple(decoders[name]))
            page_out(weight)
    return tables, keys


def _write_config(model: PreTrainedModel, folder: Path, quantizer_name: str) -> None:
    config: dict[str, Any] = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    config["quantization_config"] = {"quant_method": "sti", "quantizer": quantizer_name}
    config["transformers_weights"] = RESIDENT_FILE
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
