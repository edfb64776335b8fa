"""One stack of a model, as it is written to a store."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from sti_hf.errors import SourceError, UnsupportedModelError
from sti_hf.forking import cached_property
from sti_hf.model import get_architecture
from sti_hf.model.architecture import WORD_EMBEDDINGS, base_prefix
from sti_hf.model.fused import in_parts
from sti_hf.model.grid import Grid
from sti_hf.model.vocabulary import vocabulary_grid
from sti_hf.process_memory import page_out, return_freed_memory
from sti_hf.shards.index import StackIndex, Table
from sti_hf.shards.partition import permute_biases, split_layer, split_vocabulary
from sti_hf.shards.quantizers import Quantizer
from sti_hf.shards.safetensors_file import SafetensorsWriter
from sti_hf.shards.writing import WrittenLayer, write_layer, write_table

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class StackWriter:
    """Writes what of a store belongs to one stack.

    Args:
        model: the stack, as a model of its own.
        prefix: what its parameters' names begin with in the whole model.
        shards_file, vocabulary_file: names of the files for its layers, and for the strips of its vocabulary.
        slice_order: order of the slices of every layer; None: the checkpoint's.

    Raises `UnsupportedModelError` where the layers are not where the family has them, or their slices cannot be put in
    another order.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        prefix: str,
        shards_file: str,
        vocabulary_file: str,
        slice_order: Sequence[Sequence[int]] | None,
    ) -> None:
        self.model, self.prefix = model, prefix
        self.shards_file, self.vocabulary_file = shards_file, vocabulary_file
        self.architecture = get_architecture(model.config)
        self.grid = self.architecture.grid(model.config)
        order = slice_order or [range(self.grid.slices)] * self.grid.layers
        self.slice_order = [tuple(map(int, layer)) for layer in order]
        if not self.grid.droppable and any(each != tuple(range(self.grid.slices)) for each in self.slice_order):
            raise UnsupportedModelError(
                f"The slices of this {model.config.model_type} model have one order only: its layers cannot do "
                "without some of their heads."
            )

    def in_parts(self) -> AbstractContextManager[None]:
        """Splits the stack's fused linears for a while, in which the rest can be called."""
        return in_parts(self.model, self.architecture)

    @cached_property
    def linears(self) -> list[dict[str, nn.Linear]]:
        """Every layer's linears, by the names of their matrices."""
        try:
            linears = self.architecture.linears(self.model)
        except AttributeError:
            linears = []
        if len(linears) != self.grid.layers:
            raise UnsupportedModelError(
                f"{type(self.model).__name__} cannot be sharded: it has not the {self.grid.layers} layers of its "
                f"configuration at {base_prefix(self.model)}{self.architecture.layers}, as "
                f"{self.model.config.model_type} models have them."
            )
        return linears

    def keys(self) -> set[str]:
        """Names, in the whole model, of the weights that are sliced or read by row."""
        paths = [path for layer in range(self.grid.layers) for path in self._matrix_paths(layer).values()]
        own = [f"{base_prefix(self.model)}{path}" for path in self.architecture.embeddings(self.model.config).values()]
        return {f"{self.prefix}{path}.weight" for path in (*paths, *own, *self._decoders())}

    def permute_biases(self, weights: dict[str, Tensor]) -> None:
        """Puts the biases of the stack among the whole model's weights into the order of the slices, in place."""
        permute_biases(weights, self.architecture, self.grid, self.slice_order, self.prefix)

    def tables(self) -> dict[str, tuple[Tensor, tuple[str, ...]]]:
        """Its embeddings and any untied decoder over the vocabulary, by name, each with the decoders that it is."""
        paths = self.architecture.embeddings(self.model.config)
        weights = {name: _weight(self.model.base_model, path) for name, path in paths.items()}
        decoders: dict[str, list[str]] = {name: [] for name in paths}
        for path in self._decoders():
            weight = _weight(self.model, path)
            words = weights.get(WORD_EMBEDDINGS)
            name = WORD_EMBEDDINGS if words is not None and weight.data_ptr() == words.data_ptr() else path
            weights.setdefault(name, weight)
            decoders.setdefault(name, []).append(path)
        return {name: (weight, tuple(decoders[name])) for name, weight in weights.items()}

    def write_tables(self, writer: SafetensorsWriter) -> dict[str, Table]:
        """Writes its `tables`."""
        written = {}
        for name, (weight, decoders) in self.tables().items():
            refuse_not_finite(f"{self.prefix}{name}.weight", weight)
            written[name] = write_table(writer, f"{self.prefix}{name}", weight, decoders)
            page_out(weight)
        return written

    def write_layers(
        self, folder: Path, quantizer: Quantizer, full: bool, progress: Callable[[int], object]
    ) -> list[WrittenLayer]:
        """Writes its layers; `progress` is called with how many are done."""
        written = []
        with SafetensorsWriter(folder / self.shards_file, self.grid.layers) as writer:
            for layer in range(self.grid.layers):
                weights = self._matrices(layer)
                shards = split_layer(weights, self.architecture.matrices, self.grid, self.slice_order[layer])
                quantized = quantizer.quantize_layer(layer, shards.float(), self.grid)
                written.append(write_layer(writer, layer, quantized, shards if full else None))
                for weight in weights.values():
                    page_out(weight)
                return_freed_memory()
                progress(layer + 1)
        return written

    def write_vocabulary(self, folder: Path, quantizer: Quantizer) -> StackIndex | None:
        """Writes the strips of its linear over the vocabulary; their index, None where it has no such linear."""
        decoders = self._decoders()
        weight = _weight(self.model, decoders[0]) if decoders else None
        grid = None if weight is None else vocabulary_grid(*weight.shape)
        if weight is None or grid is None:
            return None
        written = []
        with SafetensorsWriter(folder / self.vocabulary_file, grid.layers) as writer:
            for layer in range(grid.layers):
                strips = split_vocabulary(weight, grid, layer).float()
                written.append(write_layer(writer, layer, quantizer.quantize_layer(layer, strips, grid), None))
        page_out(weight)
        order = [tuple(range(grid.slices))] * grid.layers
        return _index(self.model.config.model_type, grid, order, self.vocabulary_file, written, {})

    def index(
        self, layers: Sequence[WrittenLayer], tables: dict[str, Table], vocabulary: StackIndex | None
    ) -> StackIndex:
        """The index of what was written."""
        model_type = self.model.config.model_type
        index = _index(model_type, self.grid, self.slice_order, self.shards_file, layers, tables)
        return replace(index, vocabulary=vocabulary)

    def _matrix_paths(self, layer: int) -> dict[str, str]:
        """The paths of a layer's matrices in the stack, by their names."""
        within = f"{base_prefix(self.model)}{self.architecture.layers}.{layer}"
        return {matrix.name: f"{within}.{matrix.module}" for matrix in self.architecture.matrices}

    def _matrices(self, layer: int) -> dict[str, Tensor]:
        paths = self._matrix_paths(layer)
        weights = {name: _weight(self.model, path) for name, path in paths.items()}
        for name, weight in weights.items():
            refuse_not_finite(f"{self.prefix}{paths[name]}.weight", weight)
        return weights

    def _decoders(self) -> list[str]:
        modules = {name for name, _ in self.model.named_modules()}
        return [path for path in self.architecture.lm_decoders if path in modules]


def refuse_not_finite(name: str, tensor: Tensor) -> None:
    """Raises `SourceError` where a weight holds what is not finite."""
    if tensor.is_floating_point() and tensor.numel() and not torch.stack(torch.aminmax(tensor)).isfinite().all():
        raise SourceError(f"The weight {name} holds values that are not finite (NaN or infinite): it is damaged.")


def _weight(module: nn.Module, path: str) -> Tensor:
    return module.get_submodule(path).get_parameter("weight").detach()


def _index(
    model_type: str,
    grid: Grid,
    slice_order: Sequence[tuple[int, ...]],
    file: str,
    layers: Sequence[WrittenLayer],
    tables: dict[str, Table],
) -> StackIndex:
    return StackIndex(
        model_type=model_type,
        grid=grid,
        slice_order=tuple(slice_order),
        layer_files=(file,) * grid.layers,
        layer_offsets=tuple(layer.offset for layer in layers),
        header_bytes=tuple(layer.header_bytes for layer in layers),
        checksums=np.stack([layer.checksums for layer in layers]),
        tables=tables,
    )
