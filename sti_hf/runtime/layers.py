"""The lazy modules that stand in for those of the stock model: they hold no weights, and fetch them when they run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from sti_hf import native
from sti_hf.architectures.grid import Grid
from sti_hf.runtime.buffers import Buffers
from sti_hf.runtime.gemm import ComputePath
from sti_hf.runtime.tables import TableReader

WORKING_BYTES = 2400 << 10
"""Size of the working buffer, unless one slice of a matrix is larger: an attention matrix of a base model in float32
fits, or half an FFN matrix in bfloat16. Larger ones are multiplied block by block."""


@dataclass
class Decompressor:
    """Decompresses matrices into the working buffer, and keeps the time it takes."""

    buffers: Buffers
    path: ComputePath
    row_length: int
    matrices: tuple[str, ...]
    full_dtype: str
    threads: int = field(default_factory=torch.get_num_threads)
    seconds: float = 0.0

    def block(self, table: np.ndarray, matrix: int, first: int, last: int) -> Block:
        """The block of matrix number `matrix` that has its rows `first` to `last`: those of the slices in `table`."""
        weight = self.buffers.working(last - first, self.row_length)
        decompression = native.Decompression(
            self.buffers.compressed,
            table,
            matrix,
            self.row_length,
            weight,
            matrices=len(self.matrices),
            full_dtype=self.full_dtype,
        )
        return Block(first, last, weight, decompression)

    def decompress(self, block: Block) -> Tensor:
        """The weight of a block `[rows, row_length]`, as stored, in the working buffer until the next one is."""
        start = time.perf_counter()
        block.decompression.run(self.threads)
        self.seconds += time.perf_counter() - start
        return block.weight


@dataclass(frozen=True)
class Block:
    """Some slices of a matrix, decompressed together: which of the matrix's rows (as stored) they are, `first` to
    `last`, their `weight` in the working buffer, and what puts it there."""

    first: int
    last: int
    weight: Tensor
    decompression: native.Decompression


def block_slices(slice_bytes: int, slices: int) -> int:
    """How many slices of a matrix, `slice_bytes` each when decompressed, are multiplied by at a time."""
    return min(slices, max(1, WORKING_BYTES // slice_bytes))


def working_weights(grid: Grid, slices: int, dtype: torch.dtype) -> int:
    """Weights of the largest block of any matrix: what the working buffer must hold."""
    weights = [rows * grid.row_length for _, rows in grid.rows]
    return max(block_slices(each * dtype.itemsize, slices) * each for each in weights)


def block_ends(slices: int, slice_bytes: int) -> list[tuple[int, int]]:
    """The first and last slice of every block of a matrix, `slice_bytes` for each slice when decompressed."""
    step = block_slices(slice_bytes, slices)
    return [(start, min(start + step, slices)) for start in range(0, slices, step)]


class ElasticLinear(nn.Module):
    """A linear layer whose weight is decompressed from its active slices in each forward.

    `matrix` is its name among the layer's matrices. Where `by_columns`, the slices are columns of the weight, stored
    as rows of its transpose. The bias is resident, in slice order.
    """

    def __init__(self, linear: nn.Linear, matrix: str, by_columns: bool) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.matrix, self.by_columns = matrix, by_columns
        self.bias = linear.bias
        self._decompressor: Decompressor | None = None
        self._blocks: list[Block] = []

    def bind(self, decompressor: Decompressor, table: np.ndarray, rows: int) -> None:
        """Sets what the next forwards multiply by: `rows` rows of the slices of `table`."""
        dtype = decompressor.path.torch_dtype
        index, of_slice = decompressor.matrices.index(self.matrix), rows // len(table)
        self._decompressor = decompressor
        self._blocks = [
            decompressor.block(table[first:last], index, first * of_slice, last * of_slice)
            for first, last in block_ends(len(table), of_slice * decompressor.row_length * dtype.itemsize)
        ]
        self._bias = None
        if self.bias is not None:
            bias = self.bias.detach()  # a parameter would be registered as this module's own
            self._bias = (bias if self.by_columns else bias[:rows]).to(dtype)

    def unbind(self) -> None:
        """Lets go of the buffers, until the next `bind`."""
        self._decompressor, self._blocks = None, []

    def forward(self, x: Tensor) -> Tensor:
        """`x` `[..., active in_features]` to `[..., active out_features]`."""
        if self._decompressor is None:
            raise RuntimeError("This elastic layer has no plan: run it as part of its model.")
        if self.by_columns:
            return self._add_up(x, self._decompressor)
        parts = [self._rows_of(x, block, self._decompressor) for block in self._blocks]
        return parts[0] if len(parts) == 1 else torch.cat(parts, dim=-1)

    def _rows_of(self, x: Tensor, block: Block, decompressor: Decompressor) -> Tensor:
        bias = None if self._bias is None else self._bias[block.first : block.last]
        return decompressor.path.multiply(x, decompressor.decompress(block), bias)

    def _add_up(self, x: Tensor, decompressor: Decompressor) -> Tensor:
        total: Tensor | None = None
        for block in self._blocks:
            inputs = x[..., block.first : block.last]
            bias = self._bias if total is None else None
            part = decompressor.path.multiply(inputs, decompressor.decompress(block).t(), bias)
            total = part if total is None else total.add_(part)
        assert total is not None
        return total

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, matrix={self.matrix!r}"


class RowGatheredEmbedding(nn.Module):
    """Word embeddings whose rows are read from the store by token id, each once a forward."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.padding_idx = embedding.padding_idx
        self.output_dtype = embedding.weight.dtype
        self.reader: TableReader | None = None
        self.seconds = 0.0

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RowGatheredEmbedding:
        self.output_dtype = fn(torch.empty(0, dtype=self.output_dtype)).dtype  # model.to(dtype)
        return super()._apply(fn, recurse)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids `[...]` to `[..., embedding_dim]`."""
        if self.reader is None:
            raise RuntimeError("These embeddings have no store: load the model with from_pretrained.")
        start = time.perf_counter()
        ids, inverse = np.unique(input_ids.cpu().numpy(), return_inverse=True)
        if ids[0] < 0 or ids[-1] >= self.num_embeddings:
            raise IndexError(f"Token ids must be 0 to {self.num_embeddings - 1}; these reach {ids[0]} to {ids[-1]}.")
        rows = self.reader.read(ids.astype(np.int64))[torch.from_numpy(inverse.reshape(-1))]
        self.seconds = time.perf_counter() - start
        return rows.view(*input_ids.shape, self.embedding_dim).to(input_ids.device, self.output_dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


class StreamedDecoder(nn.Module):
    """A language-model head over the vocabulary, streamed from the store in blocks of rows."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.reader: TableReader | None = None

    def forward(self, x: Tensor) -> Tensor:
        """`x` `[..., in_features]` to logits `[..., out_features]`."""
        if self.reader is None:
            raise RuntimeError("This head has no store: load the model with from_pretrained.")
        logits = x.new_empty(*x.shape[:-1], self.out_features)
        for first, block in self.reader.blocks():
            logits[..., first : first + len(block)] = x @ block.to(x).t()
        return logits if self.bias is None else logits + self.bias
