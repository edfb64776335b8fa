"""The checksums of a table's rows: in memory where they are few, else read from the file when they are needed."""

from __future__ import annotations

import numpy as np

from sti_hf import native
from sti_hf.shards.index import Table
from sti_hf.shards.layout import BLOCK
from sti_hf.shards.store import ShardStore

MOST_IN_MEMORY = 1 << 18
"""Bytes of the checksums of a table that are kept: of 65,536 rows."""

TOGETHER = BLOCK // 4
"""Checksums that are read at once: those of neighbours are in one block."""


class RowChecksums:
    """CRC-32C of the rows of one table of a store. `bytes_read` are those read since it was opened."""

    def __init__(self, store: ShardStore, name: str, file: native.RowReader) -> None:
        self._table: Table = store.stack.tables[name]
        self._file = file
        self._all = store.row_checksums(name) if 4 * self._table.rows <= MOST_IN_MEMORY else None
        self.bytes_read = 0

    @property
    def resident_bytes(self) -> int:
        """Bytes that are kept in memory."""
        return 0 if self._all is None else self._all.nbytes

    def of(self, rows: np.ndarray) -> np.ndarray:
        """uint32 `[k]`: those of rows int64 `[k]`, ascending. Raises `native.StreamError` where the file ends."""
        if self._all is not None:
            return self._all[rows]
        # The last group ends with the table: what is behind that is not its own.
        firsts = np.minimum(rows // TOGETHER * TOGETHER, self._table.rows - TOGETHER)
        groups, group_of_row = np.unique(firsts, return_inverse=True)
        read = np.empty((len(groups), TOGETHER), dtype="<u4")
        offsets = self._table.checksums_offset + 4 * groups
        self.bytes_read += self._file.read(offsets, 4 * TOGETHER, read.view(np.uint8).reshape(-1))
        found: np.ndarray = read[group_of_row, rows - firsts]
        return found
