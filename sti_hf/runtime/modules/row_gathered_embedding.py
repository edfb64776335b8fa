"""Embeddings that are read from the store by row."""

from __future__ import annotations

import copy
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

    `table` names them in the store, `indices` in messages: what indexes them. What a subclass of `nn.Embedding` does
    beside looking rows up (Gemma scales them), it does here too: its own forward runs, on the rows that are asked for.
    """

    _weightless: nn.Embedding | None

    def __init__(self, embedding: nn.Embedding, table: str, indices: str, forwards: Forwards) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = embedding.num_embeddings, embedding.embedding_dim
        self.padding_idx = embedding.padding_idx
        self.output_dtype = embedding.weight.dtype
        self.table, self.indices = table, indices
        self._forwards = forwards
        self._buffers, self._non_persistent_buffers_set = embedding._buffers, embedding._non_persistent_buffers_set
        # No submodule: names of buffers stay what they are.
        self.__dict__["_weightless"] = None if type(embedding) is nn.Embedding else _weightless(embedding)

    @property
    def key(self) -> tuple[Forwards, str]:
        """What tells its table from others: of which stack it is, and its name."""
        return self._forwards, self.table

    @property
    def weight(self) -> Tensor:
        """All rows `[num_embeddings, embedding_dim]`, read from the store for this call: a copy."""
        every = np.arange(self.num_embeddings)
        return self._forwards.tables[self.table].read(every).to(self.output_dtype)

    def stock(self) -> nn.Embedding:
        """The module in whose place this stands, without a weight (on the device meta)."""
        shape = self.num_embeddings, self.embedding_dim
        if self._weightless is None:
            return nn.Embedding(*shape, self.padding_idx, device="meta")
        embedding = self._weightless
        embedding.__dict__.pop("weight", None)
        embedding.padding_idx = self.padding_idx
        embedding.weight = nn.Parameter(torch.empty(shape, dtype=self.output_dtype, device="meta"))
        return embedding

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
        rows = self._forwards.tables[self.table].read(ids.astype(np.int64))
        places = torch.from_numpy(inverse.reshape(input_ids.shape)).to(input_ids.device)
        embedded = self._look_up(rows.to(input_ids.device, self.output_dtype), places)
        self._forwards.note_embedding(time.perf_counter() - start)
        return embedded

    def _look_up(self, rows: Tensor, places: Tensor) -> Tensor:
        if self._weightless is None:
            return rows[places.view(-1)].view(*places.shape, self.embedding_dim)
        self._weightless.__dict__["weight"] = rows
        try:
            embedded: Tensor = self._weightless(places)
        finally:
            self._weightless.__dict__["weight"] = None
        return embedded

    def extra_repr(self) -> str:
        return f"{self.num_embeddings}, {self.embedding_dim}"


def _weightless(embedding: nn.Embedding) -> nn.Embedding:
    """The same module without its weight."""
    weightless = copy.copy(embedding)
    weightless._parameters = {name: value for name, value in embedding._parameters.items() if name != "weight"}
    weightless.padding_idx = None  # places of rows are no token ids
    weightless.__dict__["weight"] = None
    return weightless
