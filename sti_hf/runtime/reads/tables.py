"""Tables that are read by row and never resident: embeddings, and heads over the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from torch import Tensor

from sti_hf import native
from sti_hf.errors import SessionClosedError
from sti_hf.runtime.reads.row_checksums import RowChecksums
from sti_hf.shards.store import TABLES_FILE, ShardStore

BLOCK_BYTES = 1 << 20
"""Size of the row blocks in which a whole table is streamed."""


class Tables:
    """The tables of a store, by name."""

    def __init__(self, store: ShardStore, rate_limit: float = 0.0) -> None:
        self._readers = {name: TableReader(store, name, rate_limit) for name in store.stack.tables}

    def __getitem__(self, name: str) -> TableReader:
        """Raises `SessionClosedError` after `close`."""
        if name not in self._readers:
            raise SessionClosedError("This session is closed; load the model again with from_pretrained.")
        return self._readers[name]

    @property
    def bytes_read(self) -> int:
        """Bytes that were read of all tables."""
        return sum(reader.bytes_read for reader in self._readers.values())

    @property
    def resident_bytes(self) -> int:
        """Bytes that are kept in memory."""
        return sum(reader.resident_bytes for reader in self._readers.values())

    def close(self) -> None:
        """Closes the files."""
        self._readers = {}


class TableReader:
    """Reads rows of one table of a store, each checked against its CRC-32C."""

    def __init__(self, store: ShardStore, name: str, rate_limit: float = 0.0) -> None:
        self._store, self.table = store, store.stack.tables[name]
        self.dtype = getattr(torch, self.table.dtype)
        self._rows_read = 0
        self._file = native.RowReader(str(store.path / TABLES_FILE), rate_limit=rate_limit)
        self._checksums = RowChecksums(store, name, self._file)

    @property
    def resident_bytes(self) -> int:
        """Bytes that the reader keeps in memory."""
        return self._checksums.resident_bytes

    @property
    def bytes_read(self) -> int:
        """Bytes that were read, of rows and of their checksums."""
        return self._rows_read + self._checksums.bytes_read

    def read(self, rows: np.ndarray) -> Tensor:
        """The rows (int64 `[k]`, ascending) of the table: `[k, columns]` in its dtype."""
        return self._read(rows, direct=False)

    def _read(self, rows: np.ndarray, direct: bool) -> Tensor:
        size = self.table.row_bytes
        out = np.empty(len(rows) * size, dtype=np.uint8)
        offsets = self.table.offset + rows * size
        try:
            self._rows_read += self._file.read(offsets, size, out, self._checksums.of(rows), direct=direct)
        except native.StreamError as error:
            self._store.check_not_replaced(error)
            raise
        return torch.from_numpy(out).view(self.dtype).view(len(rows), self.table.columns)

    def blocks(self) -> Iterator[tuple[int, Tensor]]:
        """The whole table as blocks of rows, each with its first row; one is read while the last is in use."""
        step = max(1, BLOCK_BYTES // self.table.row_bytes)
        starts = range(0, self.table.rows, step)
        with ThreadPoolExecutor(1) as reader:
            ranges = [np.arange(start, min(start + step, self.table.rows)) for start in starts]
            coming = reader.submit(self._read, ranges[0], direct=True)
            for start, following in zip(starts, [*ranges[1:], None], strict=True):
                block = coming.result()
                if following is not None:
                    coming = reader.submit(self._read, following, direct=True)
                yield start, block
