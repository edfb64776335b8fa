"""The cache of stores."""

from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub.constants import HF_HOME
from transformers import AutoModel, BertForMaskedLM, BertForSequenceClassification, BertModel

from sti_hf import ShardStore, StoreError, shard_checkpoint
from sti_hf.integrations import checkpoint as checkpoints
from sti_hf.integrations.store_cache import cache_home, resolve_store
from sti_hf.shards import sharding
from sti_hf.shards.verification import verify_store
from tests.commands import Sti, done
from tests.integrations.checkpoints import STOCK, checkpoint, difference, save_checkpoint
from tests.models import tiny_inputs, tiny_model


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return checkpoint(BertModel, tmp_path_factory.mktemp("checkpoints") / "encoder")


def test_the_cache_follows_its_variables(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("STI_HOME", str(tmp_path))
    assert cache_home() == tmp_path
    for unset in ("", None):
        monkeypatch.setenv("STI_HOME", unset) if unset is not None else monkeypatch.delenv("STI_HOME")
        assert cache_home() == Path(HF_HOME) / "sti"


def test_a_checkpoint_is_sharded_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = resolve_store(source, "gobo")
    assert first.path.parent == cache_home() / "stores"
    assert verify_store(first) == []
    monkeypatch.setattr(checkpoints, "write_store", None)
    assert resolve_store(source, "gobo").path == first.path
    assert resolve_store(str(source) + "/", "gobo").path == first.path
    assert resolve_store(first.path, "lloyd").path == first.path, "a store is itself"


def test_another_quantizer_is_another_store(source: Path) -> None:
    stores = {name: resolve_store(source, name) for name in ("gobo", "lloyd")}
    assert stores["gobo"].path != stores["lloyd"].path
    assert all(store.index.quantizer == name for name, store in stores.items())


def test_a_changed_checkpoint_makes_a_new_store(tmp_path: Path) -> None:
    stores = []
    for seed in (1, 2):
        stock = tiny_model(BertModel, seed=seed)
        stock.save_pretrained(tmp_path)
        model = AutoModel.from_pretrained(tmp_path, sti_config=STOCK)
        inputs = tiny_inputs(stock)
        with torch.no_grad():
            assert difference(model(**inputs), stock(**inputs)) < 1e-5
        stores.append(model.sti.store)
        model.sti.close()
    assert stores[0].path != stores[1].path
    assert stores[0].index.fingerprint != stores[1].index.fingerprint


def test_a_failed_sharding_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STI_HOME", str(tmp_path / "home"))
    checkpoint(BertModel, tmp_path / "model")

    def fail(*arguments: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr("sti_hf.shards.sharding._write_config", fail)
    with pytest.raises(OSError, match="disk full"):
        resolve_store(tmp_path / "model", "gobo")
    assert list((tmp_path / "home" / "stores").iterdir()) == []


def test_processes_that_shard_at_once_agree(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STI_HOME", str(tmp_path))
    context = multiprocessing.get_context("fork")
    everyone, paths = context.Barrier(3), context.SimpleQueue()
    write_config = sharding._write_config

    def write_together(*arguments: Any) -> None:
        everyone.wait(60)
        write_config(*arguments)

    def shard() -> None:
        sharding._write_config = write_together
        paths.put(resolve_store(source, "gobo").path)

    processes = [context.Process(target=shard) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
        assert process.exitcode == 0
    assert {paths.get() for _ in processes} == {resolve_store(source, "gobo").path}
    assert len(list((tmp_path / "stores").iterdir())) == 1
    assert verify_store(resolve_store(source, "gobo")) == []


# The Hub, as far as it can be had offline: from its cache.


@pytest.fixture
def on_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder `snapshots` for a repository `someone/model` in a Hub cache of the test's own: revision "main" is
    `snapshots/aaa`, revision "old" is `snapshots/bbb`."""
    repository = tmp_path / "hub" / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    for name, commit in (("main", "a" * 40), ("old", "b" * 40)):
        (repository / "refs" / name).write_text(commit)
    return repository / "snapshots"


def from_hub(on_hub: Path, **options: Any) -> ShardStore:
    return resolve_store("someone/model", "gobo", cache_dir=str(on_hub.parents[1]), **options)


def test_a_hub_id_is_sharded_once_a_revision(on_hub: Path) -> None:
    models = {"main": tiny_model(BertModel, seed=1), "old": tiny_model(BertModel, seed=2)}
    for model, commit in zip(models.values(), ("a" * 40, "b" * 40)):
        save_checkpoint(model, on_hub / commit)
    newest, old = from_hub(on_hub), from_hub(on_hub, revision="old")
    assert newest.path.name.startswith("model-")
    assert newest.path != old.path
    assert newest.index.fingerprint != old.index.fingerprint
    assert from_hub(on_hub, revision="main").path == newest.path
    assert (newest.path / "tokenizer.json").exists()


def test_a_store_on_the_hub_is_used_as_it_is(on_hub: Path, source: Path) -> None:
    shard_checkpoint(source, on_hub / ("a" * 40), quantizer="gobo")
    assert from_hub(on_hub).path == on_hub / ("a" * 40)
    model = AutoModel.from_pretrained("someone/model", cache_dir=str(on_hub.parents[1]), sti_config=STOCK)
    stock = BertModel.from_pretrained(source)
    inputs = tiny_inputs(stock)
    with torch.no_grad():
        assert difference(model(**inputs), stock(**inputs)) < 1e-5
    model.sti.close()


# What makes another store, and what does not.


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checkpoint(BertForSequenceClassification, tmp_path / "model")


def path_of(source: Path, **options: Any) -> Path:
    return resolve_store(source, "gobo", **options).path


def test_another_class_is_another_store(model: Path) -> None:
    named, headless = (path_of(model, model_class=one) for one in (BertForSequenceClassification, BertModel))
    assert path_of(model) == named != headless
    with pytest.raises(ValueError, match="lacks"):
        path_of(model, model_class=BertForMaskedLM)
    assert path_of(model, model_class=BertModel) == headless


@pytest.mark.parametrize("name", ["README.md", "notes.txt", "training_args.bin", "optimizer.pt", "model.onnx"])
def test_files_that_do_not_matter(model: Path, name: str) -> None:
    before = path_of(model)
    (model / name).write_text("one")
    assert path_of(model) == before
    (model / name).write_text("another")
    os.utime(model / name, ns=(1, 1))
    assert path_of(model) == before


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json", "vocab.json"])
def test_files_that_matter(model: Path, name: str) -> None:
    before = path_of(model)
    (model / name).write_bytes((model / name).read_bytes() if (model / name).exists() else b"{}")
    assert path_of(model) != before


@pytest.mark.parametrize("how", ["in place", "by another file"])
def test_weights_that_changed_under_the_same_size_and_time(model: Path, how: str) -> None:
    weights = model / "model.safetensors"
    state = weights.stat()
    before = resolve_store(model, "gobo")
    written = weights if how == "in place" else weights.with_name("other")
    changed = bytearray(weights.read_bytes())
    changed[-1] ^= 1
    written.write_bytes(changed)
    os.utime(written, ns=(state.st_atime_ns, state.st_mtime_ns))
    written.replace(weights)
    assert (weights.stat().st_size, weights.stat().st_mtime_ns) == (state.st_size, state.st_mtime_ns)
    after = resolve_store(model, "gobo")
    assert after.index.fingerprint != before.index.fingerprint


def test_a_subfolder_is_the_folder(model: Path) -> None:
    assert path_of(model.parent, subfolder=model.name) == path_of(model)


def test_a_store_in_a_subfolder(model: Path, tmp_path: Path) -> None:
    store = shard_checkpoint(model, tmp_path / "stores" / "one", quantizer="gobo")
    assert path_of(tmp_path / "stores", subfolder="one") == store.path


def test_a_store_in_a_subfolder_on_the_hub(on_hub: Path, source: Path) -> None:
    shard_checkpoint(source, on_hub / ("a" * 40) / "small", quantizer="gobo")
    assert from_hub(on_hub, subfolder="small").path == on_hub / ("a" * 40) / "small"


def test_a_variant_on_the_hub(on_hub: Path) -> None:
    folder = on_hub / ("a" * 40)
    for seed, variant in enumerate((None, "small")):
        save_checkpoint(tiny_model(BertModel, seed=seed), folder)
        if variant is None:
            (folder / "model.safetensors").rename(folder / "kept")
    (folder / "model.safetensors").rename(folder / "model.small.safetensors")
    (folder / "kept").rename(folder / "model.safetensors")
    usual, small = from_hub(on_hub), from_hub(on_hub, variant="small")
    assert usual.path != small.path
    assert usual.index.fingerprint != small.index.fingerprint
    assert from_hub(on_hub, variant="small").path == small.path


# Who can read it, and where it can be written.


@pytest.mark.parametrize("where", ["weights", "configuration", "folder"])
def test_a_private_checkpoint_makes_a_private_store(model: Path, tmp_path: Path, where: str) -> None:
    path = {"weights": model / "model.safetensors", "configuration": model / "config.json", "folder": model}[where]
    path.chmod(0o700 if where == "folder" else 0o600)
    for store in (shard_checkpoint(model, tmp_path / "store", quantizer="gobo"), resolve_store(model, "gobo")):
        assert modes(store.path) == {0o700, 0o600}


@pytest.mark.parametrize(
    ("umask", "mode", "expected"),
    [
        (0o022, 0o644, {0o755, 0o644}),
        (0o077, 0o644, {0o700, 0o600}),
        (0o002, 0o664, {0o775, 0o664}),
        (0o002, 0o640, {0o770, 0o660}),
        (0o022, 0o640, {0o750, 0o640}),
    ],
)
def test_the_umask_decides_modes(model: Path, tmp_path: Path, umask: int, mode: int, expected: set[int]) -> None:
    (model / "model.safetensors").chmod(mode)
    before = os.umask(umask)
    try:
        store = shard_checkpoint(model, tmp_path / "store", quantizer="gobo")
    finally:
        os.umask(before)
    assert modes(store.path) == expected


def modes(folder: Path) -> set[int]:
    return {path.stat().st_mode & 0o777 for path in (folder, *folder.rglob("*"))}


def test_a_cache_that_cannot_be_written(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sti: Sti
) -> None:
    (tmp_path / "home").write_text("in the way")
    monkeypatch.setenv("STI_HOME", str(tmp_path / "home"))
    with pytest.raises(StoreError, match=rf"set STI_HOME .*`sti shard {model} STORE`"):
        resolve_store(model, "gobo")
    done(sti("shard", model, tmp_path / "store", "--quantizer", "gobo"))
    assert verify_store(resolve_store(tmp_path / "store", "gobo")) == []


def test_a_checkpoint_that_cannot_be_read_is_not_the_caches_fault(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(path: Path) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr("sti_hf.integrations.weight_files.refuse_pointer", fail)
    with pytest.raises(PermissionError, match=r"model\.safetensors"):
        resolve_store(model, "gobo")


def test_a_full_disk(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STI_HOME", str(tmp_path / "home"))

    def fail(*arguments: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("sti_hf.shards.sharding._write_config", fail)
    with pytest.raises(StoreError, match=r"cannot take the store of .*No space left.*set STI_HOME"):
        resolve_store(model, "gobo")
    assert list((tmp_path / "home" / "stores").iterdir()) == []
