"""The resident part of a store: weights that stay in memory, read and checked in one go."""

from __future__ import annotations

import json
import math

import numpy as np
import torch
from torch import Tensor

from sti_hf import native
from sti_hf.errors import StoreError
from sti_hf.shards.store import RESIDENT_FILE, ShardStore

READ_BYTES = 1 << 20
"""Checked while it is in the processor's cache."""

DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
}


def read_resident(store: ShardStore) -> dict[str, Tensor]:
    """The resident weights under their names in the Transformers model, views of one buffer.

    Nothing else of the file stays mapped, and nothing is copied. Raises `StoreError` where the file is damaged.
    """
    path = store.path / RESIDENT_FILE
    content = np.empty(store.index.files[RESIDENT_FILE], dtype=np.uint8)
    checksum, size = 0, 0
    with path.open("rb", buffering=0) as file:
        while read := file.readinto(content[size : size + READ_BYTES].data):
            checksum = native.crc32c(content[size : size + read], checksum)
            size += read
    if size != len(content) or checksum != store.index.resident_checksum:
        raise StoreError(f"{path} is damaged: its checksum does not match; run `sti verify`.")
    start = 8 + int.from_bytes(content[:8].tobytes(), "little")
    header = json.loads(content[8:start].tobytes())
    header.pop("__metadata__", None)
    return {name: _tensor(content[start:], entry) for name, entry in header.items()}


def read_stack_resident(store: ShardStore) -> dict[str, Tensor]:
    """`read_resident`, and those of the store's one stack under their names in that, as a model of its own, too."""
    weights = read_resident(store)
    if not store.stack_name:
        return weights
    prefix = f"{store.stack_name}."
    return weights | {name.removeprefix(prefix): weight for name, weight in weights.items() if name.startswith(prefix)}


def _tensor(data: np.ndarray, entry: dict) -> Tensor:
    dtype, shape = DTYPES[entry["dtype"]], entry["shape"]
    count = math.prod(shape)
    if count == 0:
        return torch.empty(shape, dtype=dtype)
    return torch.frombuffer(data.data, dtype=dtype, count=count, offset=entry["data_offsets"][0]).view(shape)
