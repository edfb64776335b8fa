"""The store: a model on disk as shards, every byte of which can be found and checked.

A store is a folder that is also a valid Hub repository:

- `config.json`: the model's, with `quantization_config: {"quant_method": "sti", ...}`; tokenizer files beside it;
- `resident.safetensors`: what stays in memory (norms, biases, pooler, task head), under the names of the
  Transformers model, biases of sliced matrices in slice order;
- `embeddings.safetensors`: tables that are read by row (word and position embeddings, heads over the vocabulary),
  each with a CRC-32C for every row;
- `shards-*.safetensors`: one uint8 tensor for every layer, laid out as `layout.LayerLayout` says;
- `sti.json`: the index (`StoreIndex`), with a CRC-32C of every piece and one of itself.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sti_hf import native
from sti_hf.errors import StoreError, StoreReplacedError
from sti_hf.forking import cached_property
from sti_hf.model.architecture import POSITION_EMBEDDINGS, WORD_EMBEDDINGS
from sti_hf.model.depth import DEPTH_RULE
from sti_hf.model.grid import Grid
from sti_hf.shards.layout import BLOCK, FIDELITIES, FULL, FULL_PIECE, HEADER_PIECE, KINDS, LayerLayout

FORMAT_VERSION = 1
INDEX_FILE = "sti.json"
RESIDENT_FILE = "resident.safetensors"
TABLES_FILE = "embeddings.safetensors"

ITEMSIZE = {"float32": 4, "bfloat16": 2, "float16": 2}


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
class StoreIndex:
    """What `sti.json` holds. Sizes are bytes, offsets count from the start of a file.

    `slice_order[l][k]` is the checkpoint's head (and block of FFN neurons) that slice k of layer l holds.
    `checksums[l]` uint32 `[KINDS, M]` are the CRC-32C of layer l's pieces. `files` gives the size of every file, and
    `resident_checksum` the CRC-32C of `resident.safetensors`. `fingerprint` names the source checkpoint's content.
    `depth_rule` names the rule for which layers a submodel keeps; stores from before it was recorded follow the same.
    """

    model_type: str
    grid: Grid
    quantizer: str
    has_scales: bool
    full_dtype: str | None
    slice_order: tuple[tuple[int, ...], ...]
    layer_files: tuple[str, ...]
    layer_offsets: tuple[int, ...]
    header_bytes: tuple[tuple[int, ...], ...]
    checksums: np.ndarray
    tables: dict[str, Table]
    files: dict[str, int]
    resident_checksum: int
    fingerprint: str
    depth_rule: str = DEPTH_RULE

    def to_json(self) -> str:
        """The text of `sti.json`."""
        content = {name: getattr(self, name) for name in self.__dataclass_fields__}
        content["grid"] = asdict(self.grid)
        content["tables"] = {name: asdict(table) for name, table in self.tables.items()}
        content["checksums"] = [layer.astype("<u4").tobytes().hex() for layer in self.checksums]
        body = json.dumps(content, sort_keys=True)
        return json.dumps({"format_version": FORMAT_VERSION, "checksum": native.crc32c(body.encode()), "index": body})

    @classmethod
    def from_json(cls, text: str) -> StoreIndex:
        """Reads `sti.json`; raises `StoreError` where it is damaged or of a newer format."""
        try:
            outer = json.loads(text)
            version, body, checksum = int(outer["format_version"]), outer["index"].encode(), outer["checksum"]
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise StoreError(f"{INDEX_FILE} is damaged (not an index); shard the model again.") from error
        if version != FORMAT_VERSION:
            raise StoreError(
                f"This store has format {version}, and this version of sti_hf reads format {FORMAT_VERSION}; "
                f"{'upgrade sti_hf' if version > FORMAT_VERSION else 'shard the model again'}."
            )
        if native.crc32c(body) != checksum:
            raise StoreError(f"{INDEX_FILE} is damaged (its checksum does not match); shard the model again.")
        content = json.loads(body)
        if content.get("depth_rule", DEPTH_RULE) != DEPTH_RULE:
            raise StoreError(
                f"The submodels of this store keep layers by the rule {content['depth_rule']!r}, and this version of "
                f"sti_hf knows the rule {DEPTH_RULE!r} only; upgrade sti_hf."
            )
        grid = content["grid"]
        content["grid"] = Grid(**{**grid, "rows": tuple((name, rows) for name, rows in grid["rows"])})
        content["tables"] = {
            name: Table(**{**table, "decoders": tuple(table["decoders"])}) for name, table in content["tables"].items()
        }
        shape = (len(content["checksums"]), KINDS, content["grid"].slices)
        packed = b"".join(bytes.fromhex(layer) for layer in content["checksums"])
        content["checksums"] = np.frombuffer(packed, dtype="<u4").reshape(shape)
        for name in ("slice_order", "header_bytes"):
            content[name] = tuple(tuple(values) for values in content[name])
        for name in ("layer_files", "layer_offsets"):
            content[name] = tuple(content[name])
        return cls(**content)


@dataclass(frozen=True)
class Damage:
    """A piece of a store that is not what its checksum says."""

    file: str
    offset: int
    what: str


class ShardStore:
    """A store that is open for reading: headers only, no weights."""

    def __init__(self, path: Path, index: StoreIndex) -> None:
        self.path = path
        self.index = index
        self.grid = index.grid

    @classmethod
    def open(cls, path: str | Path) -> ShardStore:
        """Opens the store in folder `path`.

        Raises `StoreError` if the folder is no store, its format is newer, its index is damaged, or a file is missing
        or cut short. Contents are checked when they are read, or all at once by `verify`.
        """
        path = Path(path).absolute()  # it is opened again later, from wherever the process is then
        if not is_store(path):
            raise StoreError(f"{path} is not a store (it has no {INDEX_FILE}); make one with `sti shard SRC {path}`.")
        index = StoreIndex.from_json((path / INDEX_FILE).read_text(errors="replace"))
        for name, size in index.files.items():
            if Path(name).name != name:
                raise StoreError(f"{INDEX_FILE} names the file {name!r}, which is not inside the store.")
            if not (path / name).is_file():
                raise StoreError(f"The store {path} lacks {name}; copy it again or shard the model again.")
            found = (path / name).stat().st_size
            if found != size:
                raise StoreError(
                    f"{name} of the store {path} is cut short or changed: it has {found} bytes and should "
                    f"have {size}; copy it again or shard the model again."
                )
        return cls(path, index)

    def check_not_replaced(self, cause: Exception) -> None:
        """Raises `StoreReplacedError` from `cause` where another store, or none, is now where this one was opened."""
        try:
            same = StoreIndex.from_json((self.path / INDEX_FILE).read_text()).to_json() == self.index.to_json()
        except (OSError, StoreError):
            same = False
        if not same:
            raise StoreReplacedError(
                f"The store {self.path} was replaced or removed after it was opened: load again."
            ) from cause

    @cached_property
    def layouts(self) -> tuple[LayerLayout, ...]:
        """Byte layout of every layer."""
        itemsize = ITEMSIZE[self.index.full_dtype] if self.index.full_dtype else 0
        return tuple(
            LayerLayout(self.grid, offset, header_bytes, itemsize, self.index.has_scales)
            for offset, header_bytes in zip(self.index.layer_offsets, self.index.header_bytes, strict=True)
        )

    @property
    def fidelities(self) -> tuple[int, ...]:
        """The fidelities this store holds."""
        return FIDELITIES if self.index.full_dtype else tuple(bits for bits in FIDELITIES if bits != FULL)

    def layer_path(self, layer: int) -> Path:
        """The file that holds layer `layer`."""
        return self.path / self.index.layer_files[layer]

    def shard_bytes(self, bits: int) -> int:
        """Bytes of all shards at fidelity `bits`, headers included."""
        kinds = [FULL_PIECE] if bits == FULL else list(range(HEADER_PIECE, bits + 1))
        return int(sum(layout.piece_bytes[kinds].sum() for layout in self.layouts))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the word embeddings; 0 where there are none."""
        table = self.index.tables.get(WORD_EMBEDDINGS)
        return table.row_bytes if table else 0

    def position_bytes(self, tokens: int) -> int:
        """Bytes of the position embeddings of that many tokens, as far as they are read by row."""
        table = self.index.tables.get(POSITION_EMBEDDINGS)
        return min(tokens, table.rows) * table.row_bytes if table else 0

    def verify(self, progress: Callable[[int], None] = lambda read: None) -> list[Damage]:
        """Reads the whole store and returns what is damaged. `progress` is called with the bytes read so far."""
        damage: list[Damage] = []
        read = 0
        for size, found in self._checks():
            read += size
            damage += found
            progress(read)
        return damage

    def _checks(self) -> Iterator[tuple[int, list[Damage]]]:
        resident = (self.path / RESIDENT_FILE).read_bytes()
        intact = native.crc32c(resident) == self.index.resident_checksum
        yield len(resident), [] if intact else [Damage(RESIDENT_FILE, 0, "resident weights")]
        for name, table in self.index.tables.items():
            yield table.rows * table.row_bytes, self._damaged_rows(name, table)
        for layer, layout in enumerate(self.layouts):
            region = np.memmap(self.layer_path(layer), np.uint8, "r", layout.offset, (layout.region_bytes,))
            yield layout.region_bytes, self._damaged_pieces(layer, region)

    def _damaged_rows(self, name: str, table: Table) -> list[Damage]:
        shape = (table.rows, table.row_bytes)
        rows = np.memmap(self.path / TABLES_FILE, np.uint8, "r", table.offset, shape)
        bad = [row for row, expected in enumerate(self.row_checksums(name)) if native.crc32c(rows[row]) != expected]
        return [Damage(TABLES_FILE, table.offset + row * table.row_bytes, f"row {row} of {name}") for row in bad]

    def _damaged_pieces(self, layer: int, region: np.ndarray) -> list[Damage]:
        layout = self.layouts[layer]
        damage = []
        for (kind, index), offset in np.ndenumerate(layout.piece_offset):
            start = offset - layout.offset
            piece = region[start : start + layout.piece_bytes[kind, index]]
            if native.crc32c(piece) != self.index.checksums[layer, kind, index]:
                what = f"{piece_name(kind)} of shard ({layer}, {index})"
                damage.append(Damage(self.index.layer_files[layer], int(offset), what))
        return damage

    def row_checksums(self, name: str) -> np.ndarray:
        """uint32 `[rows]`: CRC-32C of every row of a table."""
        table = self.index.tables[name]
        return np.fromfile(self.path / TABLES_FILE, "<u4", table.rows, offset=table.checksums_offset)


def piece_name(kind: int) -> str:
    """What a kind of piece is called in messages."""
    return {HEADER_PIECE: "header", FULL_PIECE: "full weights"}.get(kind, f"plane {kind}")


def is_store(path: str | Path) -> bool:
    """Whether the folder is (or claims to be) a store."""
    return (Path(path) / INDEX_FILE).is_file()


def aligned(size: int) -> int:
    """`size` rounded up to whole blocks."""
    return -(-size // BLOCK) * BLOCK


def store_defaults(path: str | Path) -> dict[str, Any]:
    """The `quantization_config` of the store's config.json."""
    try:
        config = json.loads((Path(path) / "config.json").read_text())
    except ValueError as error:
        raise StoreError(f"config.json of the store {path} is damaged ({error}); shard the model again.") from error
    return config.get("quantization_config", {})
