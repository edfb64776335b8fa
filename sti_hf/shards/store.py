"""The store: a model on disk as shards, every byte of which can be found and checked.

A store is a folder that is also a valid Hub repository:

- `config.json`: the model's, with `quantization_config: {"quant_method": "sti", ...}`; tokenizer files beside it;
- `resident.safetensors`: what stays in memory (norms, biases, pooler, task head), under the names of the
  Transformers model, biases of sliced matrices in slice order;
- `embeddings.safetensors`: tables that are read by row (word and position embeddings, heads over the vocabulary),
  each with a CRC-32C for every row;
- `shards-*.safetensors`: one uint8 tensor for every layer, laid out as `layout.LayerLayout` says; a file for each
  stack; `vocabulary-*.safetensors` the same of the linear over the vocabulary;
- `sti.json`: the index (`StoreIndex`), with a CRC-32C of every piece and one of itself.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from sti_hf.errors import StoreError, StoreReplacedError, UnsupportedModelError
from sti_hf.forking import cached_property
from sti_hf.model.architecture import POSITION_EMBEDDINGS, WORD_EMBEDDINGS
from sti_hf.model.grid import Grid
from sti_hf.shards.index import INDEX_FILE, ITEMSIZE, UNREADABLE, StackIndex, StoreIndex
from sti_hf.shards.layout import BLOCK, FIDELITIES, FULL, FULL_PIECE, HEADER_PIECE, LayerLayout

RESIDENT_FILE = "resident.safetensors"
TABLES_FILE = "embeddings.safetensors"


class ShardStore:
    """A store that is open for reading: headers only, no weights.

    One of a model with several stacks is used stack by stack: `stacks` has, for each, the same store with only that
    one (`stack`, `grid`, `layouts`, ...), which the store itself has where there is no other. And `vocabulary` is the
    same store with the strips of the vocabulary in place of the layers.
    """

    def __init__(
        self, path: Path, index: StoreIndex, stack_name: str | None = None, is_vocabulary: bool = False
    ) -> None:
        self.path = path
        self.index = index
        self.stack_name = next(iter(index.stacks)) if len(index.stacks) == 1 else stack_name
        self.is_vocabulary = is_vocabulary

    @classmethod
    def open(cls, path: str | Path) -> ShardStore:
        """Opens the store in folder `path`.

        Raises `StoreError` if the folder is no store, its format is newer, its index is damaged or names what its
        files have no room for, or a file is missing or cut short. Contents are checked when they are read, or all at
        once by `verify_store`.
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
        store = cls(path, index)
        for each in store.parts:
            _check_places(each)
        return store

    @property
    def stacks(self) -> dict[str, ShardStore]:
        """This store with each of its stacks, by their paths in the base model; itself where it is used as one."""
        return self._by_stack if self.stack_name is None else {self.stack_name: self}

    @cached_property
    def _by_stack(self) -> dict[str, ShardStore]:
        return {name: ShardStore(self.path, self.index, name) for name in self.index.stacks}

    @property
    def parts(self) -> list[ShardStore]:
        """This store with each of its stacks, and with each of their vocabularies."""
        stacks = list(self.stacks.values())
        return stacks + [stack.vocabulary for stack in stacks if stack.vocabulary is not None]

    @cached_property
    def vocabulary(self) -> ShardStore | None:
        """This store with the strips of its stack's vocabulary; None where there are none."""
        if self.is_vocabulary or self.stack.vocabulary is None:
            return None
        return ShardStore(self.path, self.index, self.stack_name, is_vocabulary=True)

    @property
    def stack(self) -> StackIndex:
        """The index of its stack. Raises `UnsupportedModelError` where there are several."""
        if self.stack_name is None:
            raise UnsupportedModelError(
                f"The model of the store {self.path} has the stacks {' and '.join(self.index.stacks)}, and this is "
                "for models with one."
            )
        stack = self.index.stacks[self.stack_name]
        if not self.is_vocabulary:
            return stack
        assert stack.vocabulary is not None
        return stack.vocabulary

    @property
    def full_dtype(self) -> str | None:
        """Dtype of its full weights; None where there are none."""
        return None if self.is_vocabulary else self.index.full_dtype

    @property
    def grid(self) -> Grid:
        """The cut of its stack."""
        return self.stack.grid

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
        itemsize = ITEMSIZE[self.full_dtype] if self.full_dtype else 0
        return tuple(
            LayerLayout(self.grid, offset, header_bytes, itemsize, self.index.has_scales)
            for offset, header_bytes in zip(self.stack.layer_offsets, self.stack.header_bytes, strict=True)
        )

    @property
    def fidelities(self) -> tuple[int, ...]:
        """The fidelities this store holds."""
        return FIDELITIES if self.full_dtype else tuple(bits for bits in FIDELITIES if bits != FULL)

    def layer_path(self, layer: int) -> Path:
        """The file that holds layer `layer`."""
        return self.path / self.stack.layer_files[layer]

    def shard_bytes(self, bits: int) -> int:
        """Bytes of all shards at fidelity `bits`, headers included."""
        kinds = [FULL_PIECE] if bits == FULL else list(range(HEADER_PIECE, bits + 1))
        return int(sum(layout.piece_bytes[kinds].sum() for layout in self.layouts))

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of the word embeddings; 0 where there are none."""
        table = self.stack.tables.get(WORD_EMBEDDINGS)
        return table.row_bytes if table else 0

    def position_bytes(self, tokens: int) -> int:
        """Bytes of the position embeddings of that many tokens, as far as they are read by row."""
        table = self.stack.tables.get(POSITION_EMBEDDINGS)
        return min(tokens, table.rows) * table.row_bytes if table else 0

    def row_checksums(self, name: str) -> np.ndarray:
        """uint32 `[rows]`: CRC-32C of every row of a table."""
        table = self.stack.tables[name]
        return np.fromfile(self.path / TABLES_FILE, "<u4", table.rows, offset=table.checksums_offset)


def is_store(path: str | Path) -> bool:
    """Whether the folder is (or claims to be) a store."""
    return (Path(path) / INDEX_FILE).is_file()


def store_defaults(path: str | Path) -> dict[str, Any]:
    """The `quantization_config` of the store's config.json."""
    try:
        config = json.loads((Path(path) / "config.json").read_text())
    except ValueError as error:
        raise StoreError(f"config.json of the store {path} is damaged ({error}); shard the model again.") from error
    return config.get("quantization_config", {})


def _check_places(store: ShardStore) -> None:
    """Raises `StoreError` where a stack's index names places that its files do not have."""
    try:
        fits = _layers_fit(store) and _tables_fit(store)
    except UNREADABLE:
        fits = False
    if not fits:
        raise StoreError(
            f"{INDEX_FILE} of the store {store.path} names places that its files do not have; copy it again or shard "
            "the model again."
        )


def _layers_fit(store: ShardStore) -> bool:
    stack, grid = store.stack, store.grid
    counts = {len(stack.layer_files), len(store.layouts), len(stack.slice_order), len(stack.checksums)}
    return counts == {grid.layers} and all(
        len(layout.header_bytes) == grid.slices
        and min(layout.header_bytes) >= 0
        and layout.offset >= 0
        and layout.offset % BLOCK == 0
        and layout.offset + layout.region_bytes <= store.index.files[file]
        for file, layout in zip(stack.layer_files, store.layouts)
    )


def _tables_fit(store: ShardStore) -> bool:
    size = store.index.files[TABLES_FILE]
    return all(
        min(table.offset, table.checksums_offset, table.rows, table.columns) >= 0
        and table.offset + table.rows * table.row_bytes <= size
        and table.checksums_offset + 4 * table.rows <= size
        for table in store.stack.tables.values()
    )
