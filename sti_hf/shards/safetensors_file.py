"""Writing safetensors files piece by piece, so that no whole file is ever held in memory."""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np

from sti_hf import native
from sti_hf.shards.layout import BLOCK

ITEMSIZES = {"U8": 1, "U32": 4, "F32": 4, "BF16": 2, "F16": 2}


class SafetensorsWriter:
    """Appends tensors to a safetensors file whose data begins at a multiple of 4096 bytes.

    `tensors` (at most this many) bounds the room that is kept for the header. Use as a context manager: on a clean
    exit the header is written and the file is synced.
    """

    def __init__(self, path: Path, tensors: int) -> None:
        self._header: dict[str, dict[str, object]] = {}
        self._start = -(-(tensors * 160 + 8) // BLOCK) * BLOCK
        self._tensor_start = 0
        self._file: BinaryIO = path.open("wb")
        self._file.seek(self._start)

    def __enter__(self) -> SafetensorsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        with self._file:
            if kind is None:
                self._write_header()
                self._file.flush()
                os.fsync(self._file.fileno())

    @property
    def position(self) -> int:
        """Offset in the file of the next byte to be appended."""
        return self._file.tell()

    def append(self, data: np.ndarray) -> int:
        """Appends bytes to the tensor under way and returns their CRC-32C."""
        raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
        self._file.write(raw.data)
        return native.crc32c(raw)

    def pad(self) -> None:
        """Pads the tensor under way to a whole block."""
        self._file.write(b"\0" * (-self._file.tell() % BLOCK))

    def finish_tensor(self, name: str, dtype: str, shape: tuple[int, ...]) -> None:
        """Names what was appended since the last tensor."""
        start, end = self._tensor_start, self._file.tell() - self._start
        if end - start != math.prod(shape) * ITEMSIZES[dtype]:
            raise ValueError(f"{name} has {end - start} bytes, which is not {dtype} {shape}.")
        self._header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, end]}
        self._tensor_start = end

    def _write_header(self) -> None:
        text = json.dumps(self._header).encode()
        room = self._start - 8
        if len(text) > room:
            raise ValueError(f"The safetensors header takes {len(text)} bytes and has room for {room}.")
        self._file.seek(0)
        self._file.write(room.to_bytes(8, "little") + text.ljust(room))
