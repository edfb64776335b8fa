"""Tensors kept on disk while a model is calibrated, so that memory does not grow with the model."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor


class Scratch:
    """Named groups of tensors in a temporary folder, which goes with the object."""

    def __init__(self) -> None:
        self._folder = tempfile.TemporaryDirectory(prefix="sti-calibration-")

    def save(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write (or replace) a group. Tensors of the group it replaces stay valid."""
        contiguous = {key: tensor.detach().contiguous() for key, tensor in tensors.items()}
        written = Path(self._folder.name, f"{name}.new")
        save_file(contiguous, written)
        written.replace(Path(self._folder.name, name))  # not in place: loaded tensors may be mapped from the old file

    def load(self, name: str) -> dict[str, Tensor]:
        """Read a group."""
        return load_file(Path(self._folder.name, name))
