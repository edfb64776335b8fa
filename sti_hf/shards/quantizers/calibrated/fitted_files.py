"""Fitted layers in the scratch folder, and what a shard is known by."""

from __future__ import annotations

import hashlib

from torch import Tensor

from sti_hf.shards.quantizers.calibrated.nested_fit import BITS, FittedLayer
from sti_hf.shards.quantizers.calibrated.scratch import Scratch


def digest_of(shard: Tensor) -> bytes:
    """16 bytes that name the content of a float32 shard."""
    return hashlib.blake2b(shard.contiguous().numpy().data, digest_size=16).digest()


def save_fitted(scratch: Scratch, layer: int, fitted: FittedLayer) -> None:
    """Write (or replace) what was fitted to a layer."""
    tensors = {"codes": fitted.codes, "is_outlier": fitted.is_outlier}
    for bits in BITS:
        tensors |= {f"codebooks.{bits}": fitted.codebooks[bits], f"scales.{bits}": fitted.scales[bits]}
    scratch.save(f"fitted.{layer}", tensors)


def load_fitted(scratch: Scratch, layer: int) -> FittedLayer:
    """What `save_fitted` wrote last for a layer."""
    tensors = scratch.load(f"fitted.{layer}")
    return FittedLayer(
        tensors["codes"],
        {bits: tensors[f"codebooks.{bits}"] for bits in BITS},
        {bits: tensors[f"scales.{bits}"] for bits in BITS},
        tensors["is_outlier"],
    )
