from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open

from sti_hf.errors import StoreError
from sti_hf.shards.index import INDEX_FILE
from sti_hf.shards.layout import BLOCK, FIDELITIES, FULL, FULL_PIECE, PLANES
from sti_hf.shards.partition import split_layer
from sti_hf.shards.quantizers import get_quantizer
from sti_hf.shards.sharding import write_store
from sti_hf.shards.store import RESIDENT_FILE, TABLES_FILE, ShardStore
from sti_hf.shards.verification import verify_store
from tests.models import HIDDEN, POSITIONS, TASK_HEADS, tiny_model


def write(folder: Path, quantizer: str = "lloyd", model_type: str = "bert", head: int = 0, **options) -> ShardStore:
    model = tiny_model(TASK_HEADS[model_type][head])
    return write_store(model, folder, quantizer=get_quantizer(quantizer), quantizer_name=quantizer, **options)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return write(tmp_path_factory.mktemp("stores") / "store")


def copied(store: ShardStore, folder: Path) -> Path:
    target = folder / "copy"
    subprocess.run(["cp", "-r", str(store.path), str(target)], check=True)
    return target


@pytest.mark.parametrize("quantizer", ["lloyd", "gobo"])
def test_every_byte_is_where_the_layout_says(tmp_path: Path, quantizer: str) -> None:
    # An independent reading of the format, from the text of layout.py alone.
    model = tiny_model(TASK_HEADS["bert"][0])
    store = write_store(model, tmp_path / "s", quantizer=get_quantizer(quantizer), quantizer_name=quantizer)
    grid = store.grid
    from sti_hf.model import get_architecture

    architecture = get_architecture(model.config)
    modules = model.base_model.get_submodule(architecture.layers)
    raw = store.layer_path(1).read_bytes()
    weights = {m.name: modules[1].get_submodule(m.module).weight for m in architecture.matrices}
    shards = split_layer(weights, architecture.matrices, grid, range(grid.slices))
    expected = get_quantizer(quantizer).quantize_layer(1, shards.float(), grid)
    at = store.layouts[1].offset
    assert at % BLOCK == 0
    outliers = []
    for _ in range(grid.slices):
        counts = np.frombuffer(raw, np.uint32, len(grid.rows), at)
        at += counts.nbytes
        positions = np.frombuffer(raw, np.uint32, counts.sum(), at)
        at += positions.nbytes
        outliers.append((counts, positions, np.frombuffer(raw, np.float32, counts.sum(), at)))
        at += positions.nbytes
    codes = np.zeros((grid.slices, grid.slice_weights), np.uint8)
    for plane in range(1, PLANES + 1):
        for index in range(grid.slices):
            if plane >= 2:
                books = np.frombuffer(raw, np.float32, len(grid.rows) * 2**plane, at)
                assert np.array_equal(books, expected.codebooks[plane][index].flatten().numpy())
                at += books.nbytes
                if quantizer == "lloyd":
                    scales = np.frombuffer(raw, np.float16, grid.slice_rows, at)
                    assert np.array_equal(scales, expected.scales[plane][index].numpy())
                    at += -(-2 * grid.slice_rows // 4) * 4
            packed = np.frombuffer(raw, np.uint8, grid.slice_weights // 8, at)
            bits = np.unpackbits(packed, bitorder="little")
            codes[index] |= bits << (PLANES - plane)
            at += packed.nbytes
    assert np.array_equal(codes, expected.codes.flatten(1).numpy())
    full = np.frombuffer(raw, np.float32, grid.slices * grid.slice_weights, at).reshape(shards.shape)
    assert np.array_equal(full, shards.detach().numpy())
    assert expected.outliers is not None
    for index, (counts, positions, values) in enumerate(outliers):
        found = expected.outliers[index]
        assert np.array_equal(counts, found.counts.numpy())
        assert np.array_equal(positions, found.positions.numpy())
        assert np.array_equal(values, found.values.numpy())


def test_a_layer_at_the_lowest_fidelity_is_one_read(store: ShardStore) -> None:
    for layout in store.layouts:
        assert len(layout.read_ranges(layout.pieces_of([2] * store.grid.slices))) == 1


def test_files_are_valid_safetensors(store: ShardStore) -> None:
    for name in store.index.files:
        with safe_open(store.path / name, "pt") as file:
            assert len(list(file.keys())) > 0
    with safe_open(store.path / TABLES_FILE, "pt") as file:
        model = tiny_model(TASK_HEADS["bert"][0])
        for name in ("word_embeddings", "position_embeddings"):
            embeddings = model.base_model.embeddings.get_submodule(name).weight
            assert torch.equal(file.get_tensor(f"{name}.weight"), embeddings)
    with safe_open(store.path / RESIDENT_FILE, "pt") as file:
        names = list(file.keys())
    assert names and not [name for name in names if "word_embeddings" in name or "position_embeddings" in name]


def test_bytes_that_a_text_reads_of_the_embeddings(store: ShardStore) -> None:
    assert store.row_bytes == 4 * HIDDEN
    assert store.position_bytes(11) == 11 * 4 * HIDDEN
    assert store.position_bytes(1000) == POSITIONS * 4 * HIDDEN


def test_config_names_the_method_and_the_resident_file(store: ShardStore) -> None:
    config = json.loads((store.path / "config.json").read_text())
    assert config["quantization_config"]["quant_method"] == "sti"
    assert config["transformers_weights"] == RESIDENT_FILE


def test_an_intact_store_verifies(store: ShardStore) -> None:
    read = []
    assert verify_store(store, read.append) == []
    assert read == sorted(read)
    assert read[-1] >= sum(store.index.files.values()) * 0.9


def test_no_full_leaves_the_full_weights_out(tmp_path: Path, store: ShardStore) -> None:
    small = write(tmp_path / "small", full=False)
    assert FULL not in small.fidelities
    assert store.fidelities == FIDELITIES
    assert verify_store(small) == []
    assert (small.layouts[0].piece_bytes[FULL_PIECE] == 0).all()
    assert sum(small.index.files.values()) < sum(store.index.files.values())


def test_slice_order_permutes_shards_and_biases(tmp_path: Path, store: ShardStore) -> None:
    grid = store.grid
    order = [list(reversed(range(grid.slices)))] * grid.layers
    permuted = write(tmp_path / "permuted", slice_order=order)
    first, second = (
        np.fromfile(s.layer_path(0), np.float32, grid.slices * grid.slice_weights, offset=full_offset(s)).reshape(
            grid.slices, -1
        )
        for s in (store, permuted)
    )
    assert np.array_equal(first[::-1], second)


def full_offset(store: ShardStore) -> int:
    return int(store.layouts[0].piece_offset[FULL_PIECE, 0])


@pytest.mark.parametrize("name", [RESIDENT_FILE, TABLES_FILE, "shards-00001-of-00001.safetensors"])
def test_verify_finds_one_flipped_bit_in_any_file(tmp_path: Path, store: ShardStore, name: str) -> None:
    path = copied(store, tmp_path)
    raw = bytearray((path / name).read_bytes())
    raw[-BLOCK if name.startswith("shards") else -3] ^= 4
    (path / name).write_bytes(raw)
    damage = verify_store(ShardStore.open(path))
    assert len(damage) == 1
    assert damage[0].file == name


@pytest.mark.parametrize("name", [RESIDENT_FILE, TABLES_FILE, "shards-00001-of-00001.safetensors"])
def test_opening_refuses_missing_and_cut_files(tmp_path: Path, store: ShardStore, name: str) -> None:
    path = copied(store, tmp_path)
    with (path / name).open("r+b") as file:
        file.truncate((path / name).stat().st_size - 1)
    with pytest.raises(StoreError, match="cut short"):
        ShardStore.open(path)
    (path / name).unlink()
    with pytest.raises(StoreError, match=f"lacks {name}"):
        ShardStore.open(path)


def test_opening_refuses_a_damaged_index(tmp_path: Path, store: ShardStore) -> None:
    path = copied(store, tmp_path)
    text = (path / INDEX_FILE).read_text()
    (path / INDEX_FILE).write_text(text.replace("bert", "bart"))
    with pytest.raises(StoreError, match="checksum does not match"):
        ShardStore.open(path)
    wrong = [{"format_version": None}, {"format_version": "x"}, {"index": None}, {"index": -7}, {"index": []}]
    others = [json.dumps(json.loads(text) | each).encode() for each in wrong] + [b"null", b"1", b"[]"]
    for damaged in (text[:100].encode(), b"", b"\xff\xfe" + text.encode(), *others):
        (path / INDEX_FILE).write_bytes(damaged)
        with pytest.raises(StoreError, match="not an index"):
            ShardStore.open(path)


def test_opening_refuses_a_newer_format(tmp_path: Path, store: ShardStore) -> None:
    path = copied(store, tmp_path)
    content = json.loads((path / INDEX_FILE).read_text())
    (path / INDEX_FILE).write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(StoreError, match=r"format 99.*upgrade sti_hf"):
        ShardStore.open(path)


def test_opening_refuses_files_outside_the_store(tmp_path: Path, store: ShardStore) -> None:
    from dataclasses import replace

    path = copied(store, tmp_path)
    (tmp_path / "secret").write_text("x")
    index = replace(store.index, files={**store.index.files, "../secret": 1})
    (path / INDEX_FILE).write_text(index.to_json())
    with pytest.raises(StoreError, match="not inside the store"):
        ShardStore.open(path)


def test_a_folder_without_index_is_no_store(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="is not a store"):
        ShardStore.open(tmp_path)


def test_writing_never_overwrites(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "precious").write_text("x")
    with pytest.raises(FileExistsError, match="not empty"):
        write(tmp_path / "mine")
    assert (tmp_path / "mine" / "precious").read_text() == "x"


def test_a_failed_write_leaves_nothing(tmp_path: Path) -> None:
    def fail(done: int) -> None:
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write(tmp_path / "store", progress=fail)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_write_leaves_nothing_that_opens(tmp_path: Path, how: signal.Signals) -> None:
    script = (
        # Jobs that a shell runs in the background inherit that it is ignored.
        "import signal; signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "import sys, time; from tests.shards.test_store import write; from pathlib import Path\n"
        "def pause(done): print('layer', flush=True); time.sleep(60)\n"
        "write(Path(sys.argv[1]), progress=pause)"
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path / "store")],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"layer\n"
    time.sleep(0.1)
    process.send_signal(how)
    process.wait(20)
    assert not (tmp_path / "store").exists()
    for left in tmp_path.iterdir():
        with pytest.raises(StoreError):
            ShardStore.open(left)
    if how == signal.SIGINT:
        assert list(tmp_path.iterdir()) == []


def test_a_relative_path_survives_a_change_of_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    written = write(Path("store"))
    opened = ShardStore.open("store")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    for store in (written, opened):
        assert store.path == tmp_path / "store"
        assert verify_store(store) == []
