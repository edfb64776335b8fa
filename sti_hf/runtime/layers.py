"""The lazy modules that stand in for those of the stock model: they hold no weights, and fetch them when they run."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn

from sti_hf import native
from sti_hf.runtime.buffers import Buffers
from sti_hf.runtime.gemm import ComputePath
from sti_hf.runtime.tables import TableReader


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

    def decompress(self, table: np.ndarray, matrix: int, rows: int) -> Tensor:
        """The working buffer, filled with `rows` rows of matrix number `matrix` of the slices in `table`."""
        start = time.perf_counter()
        weight = self.buffers.working(rows, self.row_length)
        native.decompress(
            self.buffers.compressed,
            table,
            matrix,
            self.row_length,
            weight,
            matrices=len(self.matrices),
            full_dtype=self.full_dtype,
            threads=self.threads,
        )
        self.seconds += time.perf_counter() - start
        return weight


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

    def bind(self, decompressor: Decompressor, table: np.ndarray, rows: int) -> None:
        """Sets what the next forwards multiply by: `rows` rows of the slices of `table`."""
        self._decompressor, self._table, self._rows = decompressor, table, rows
        self._index = decompressor.matrices.index(self.matrix)
        self._bias = None
        if self.bias is not None:
            # Detached: a parameter would become one of this module's.
            active = self.bias.detach() if self.by_columns else self.bias.detach()[:rows]
            self._bias = active.to(decompressor.path.torch_dtype)

    def forward(self, x: Tensor) -> Tensor:
        """`x` `[..., active in_features]` to `[..., active out_features]`."""
        if self._decompressor is None:
            raise RuntimeError("This elastic layer has no plan: run it as part of its model.")
        weight = self._decompressor.decompress(self._table, self._index, self._rows)
        return self._decompressor.path.multiply(x, weight.t() if self.by_columns else weight, self._bias)

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
