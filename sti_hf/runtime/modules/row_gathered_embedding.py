"""Embeddings that are read from the store by row."""

from __future__ import annotations

import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn

from sti_hf.errors import InputError
from sti_hf.runtime.forwards import Forwards
from sti_hf.runtime.modules.part import StoredPart


class RowGatheredEmbedding(StoredPart, nn.Module):
    """Embeddings whose rows are read from the store by index, each once a forward.

    `table` names them in the store, `indices` in messages: what indexes them.
    """

    def __init__(self, embedding: nn.Embedding, table: str, indices: str, forwards: Forwards) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.padding_idx = embedding.padding_idx
        self.output_dtype = embedding.weight.dtype
        self.table, self.indices = table, indices
        self._forwards = forwards

    @property
    def weight(self) -> Tensor:
        """All rows `[num_embeddings, embedding_dim]`, read from the store for this call: a copy."""
        every = np.arange(self.num_embeddings)
        return self._forwards.tables[self.table].read(every).to(self.output_dtype)

    def stock(self) -> nn.Embedding:
        """The module in whose place this stands, without a weight (on the device meta)."""
        return nn.Embedding(self.num_embeddings, self.embedding_dim, self.padding_idx, device="meta")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> RowGatheredEmbedding:
        self.output_dtype = fn(torch.empty(0, dtype=self.output_dtype)).dtype  # model.to(dtype)
        return super()._apply(fn, recurse)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Token ids `[...]` to `[..., embedding_dim]`."""
        start = time.perf_counter()
        ids, inverse = np.unique(input_ids.cpu().numpy(), return_inverse=True)
        if len(ids) and (ids[0] < 0 or ids[-1] >= self.num_embeddings):
            raise InputError(
                f"{self.indices} must be 0 to {self.num_embeddings - 1}; these reach {ids[0]} to {ids[-1]}."
            )
        rows = self._forwards.tables[self.table].read(ids.astype(np.int64))[torch.from_numpy(inverse.reshape(-1))]
        self._forwards.note_embedding(time.perf_counter() - start)
        return rows.view(*input_ids.shape, self.embedding_dim).to(input_ids.device, self.output_dtype)

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"
