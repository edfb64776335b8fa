"""`sti.json`: what a store holds, and where.

Format 2, which is written, describes every stack of the model by itself; format 1, of models with one stack, is read
as before.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from sti_hf import native
from sti_hf.errors import StoreError
from sti_hf.model.depth import DEPTH_RULE
from sti_hf.model.grid import Grid
from sti_hf.shards.layout import KINDS

FORMAT_VERSION = 2
INDEX_FILE = "sti.json"

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}

UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OverflowError)
"""What reading a structure raises that is not what was expected."""


@dataclass(frozen=True)
class Table:
    """A matrix that is read by rows: `rows` rows of `columns` values, and where they are in `embeddings.safetensors`.

    `decoders` are the modules of the full model (language-model heads) that multiply by this table.
    """

    offset: int
    rows: int
    columns: int
    dtype: str
    checksums_offset: int
    decoders: tuple[str, ...] = ()

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.columns * ITEMSIZE[self.dtype]


@dataclass(frozen=True)
class StackIndex:
    """The shards of one stack of a model. Sizes are bytes, offsets count from the start of a file.

    `model_type` is that of the stack's own configuration. `slice_order[l][k]` is the checkpoint's head (and block of
    FFN neurons) that slice k of layer l holds; where slices are not droppable, k. `checksums[l]` uint32
    `[KINDS, M]` are the CRC-32C of layer l's pieces.
    `vocabulary` has the strips of the linear over the vocabulary (`sti_hf.model.vocabulary`), which have no full
    weights: those are a table.
    """

    model_type: str
    grid: Grid
    slice_order: tuple[tuple[int, ...], ...]
    layer_files: tuple[str, ...]
    layer_offsets: tuple[int, ...]
    header_bytes: tuple[tuple[int, ...], ...]
    checksums: np.ndarray
    tables: dict[str, Table]
    vocabulary: StackIndex | None = None

    def to_content(self) -> dict[str, Any]:
        """What of it JSON can hold."""
        return {
            **{field.name: getattr(self, field.name) for field in fields(self)},
            "grid": asdict(self.grid),
            "tables": {name: asdict(table) for name, table in self.tables.items()},
            "checksums": [layer.astype("<u4").tobytes().hex() for layer in self.checksums],
            "vocabulary": None if self.vocabulary is None else self.vocabulary.to_content(),
        }

    @classmethod
    def from_content(cls, content: Mapping[str, Any]) -> StackIndex:
        """Reads what `to_content` gave."""
        grid = content["grid"]
        cut = Grid(**{**grid, "rows": tuple((name, rows) for name, rows in grid["rows"])})
        order = tuple(map(tuple, content["slice_order"]))
        if not cut.droppable and any(each != tuple(range(cut.slices)) for each in order):
            raise ValueError("slices in another order that mean something only together")
        packed = b"".join(bytes.fromhex(layer) for layer in content["checksums"])
        vocabulary = content.get("vocabulary")
        return cls(
            model_type=content["model_type"],
            grid=cut,
            slice_order=order,
            layer_files=tuple(content["layer_files"]),
            layer_offsets=tuple(content["layer_offsets"]),
            header_bytes=tuple(map(tuple, content["header_bytes"])),
            checksums=np.frombuffer(packed, dtype="<u4").reshape(len(content["checksums"]), KINDS, cut.slices),
            tables={
                name: Table(**{**table, "decoders": tuple(table["decoders"])})
                for name, table in content["tables"].items()
            },
            vocabulary=None if vocabulary is None else cls.from_content(vocabulary),
        )


@dataclass(frozen=True)
class StoreIndex:
    """What `sti.json` holds.

    `stacks` are by their paths in the base model: "" where the base model has the layers itself. `files` gives the
    size of every file in bytes, and `resident_checksum` the CRC-32C of `resident.safetensors`. `fingerprint` names the
    source checkpoint's content. `depth_rule` names the rule for which layers a submodel keeps; stores from before it
    was recorded follow the same.
    """

    model_type: str
    quantizer: str
    has_scales: bool
    full_dtype: str | None
    stacks: dict[str, StackIndex]
    files: dict[str, int]
    resident_checksum: int
    fingerprint: str
    depth_rule: str = DEPTH_RULE

    def to_json(self) -> str:
        """The text of `sti.json`."""
        content = {field.name: getattr(self, field.name) for field in fields(self)}
        content["stacks"] = {name: stack.to_content() for name, stack in self.stacks.items()}
        body = json.dumps(content, sort_keys=True)
        return json.dumps({"format_version": FORMAT_VERSION, "checksum": native.crc32c(body.encode()), "index": body})

    @classmethod
    def from_json(cls, text: str) -> StoreIndex:
        """Reads `sti.json`; raises `StoreError` where it is damaged or of a newer format."""
        try:
            outer = json.loads(text)
            version, body, checksum = int(outer["format_version"]), outer["index"].encode(), outer["checksum"]
        except UNREADABLE as error:
            raise StoreError(f"{INDEX_FILE} is damaged (not an index); shard the model again.") from error
        if not 1 <= version <= FORMAT_VERSION:
            raise StoreError(
                f"This store has format {version}, and this version of sti_hf reads formats 1 to {FORMAT_VERSION}; "
                f"{'upgrade sti_hf' if version > FORMAT_VERSION else 'shard the model again'}."
            )
        if native.crc32c(body) != checksum:
            raise StoreError(f"{INDEX_FILE} is damaged (its checksum does not match); shard the model again.")
        try:
            index = cls._from_content(json.loads(body), version)
        except UNREADABLE as error:
            raise StoreError(f"{INDEX_FILE} describes no store; copy it again or shard the model again.") from error
        if index.depth_rule != DEPTH_RULE:
            raise StoreError(
                f"The submodels of this store keep layers by the rule {index.depth_rule!r}, and this version of "
                f"sti_hf knows the rule {DEPTH_RULE!r} only; upgrade sti_hf."
            )
        return index

    @classmethod
    def _from_content(cls, content: dict[str, Any], version: int) -> StoreIndex:
        stacks = content["stacks"] if version > 1 else {"": content}
        read = {name: StackIndex.from_content(stack) for name, stack in stacks.items()}
        if not read:
            raise ValueError("no stacks")
        known = {field.name for field in fields(cls)} & content.keys()
        files = {str(name): int(size) for name, size in content["files"].items()}
        return cls(**{**{name: content[name] for name in known}, "stacks": read, "files": files})
