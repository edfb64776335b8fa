"""The files that come along from a checkpoint into its store."""

from __future__ import annotations

import ast
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from huggingface_hub.utils import filter_repo_objects
from safetensors.torch import load_file, save_file
from transformers import BertModel

from sti_hf import ShardStore, cli, shard_checkpoint
from sti_hf.integrations import sources
from sti_hf.integrations.companion_files import PATTERNS, companion_files
from sti_hf.integrations.store_cache import resolve_store
from sti_hf.model import get_architecture
from sti_hf.shards.reorder import reorder_store
from sti_hf.shards.verification import verify_store
from tests.integrations.checkpoints import checkpoint, refused

PLAIN = (
    *("chat_template.jinja", "additional_chat_templates/tools.jinja", "generation_config.json"),
    *("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"),
    *("audio_tokenizer_config.json", "spiece.model", "tokenizer.4.0.0.json", "chat_template.json"),
    *("sentence_bert_config.json", "sentence_xlm-roberta_config.json", "config_sentence_transformers.json"),
    *("1_Pooling/config.json", "2_Dense/config.json", "2_Dense/tables/more.txt"),
)
LEFT = ("README.md", "training_args.bin", "onnx/model.onnx", "3_Unnamed/config.json", "2_Dense/optimizer.pt")
MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"},
    {"idx": 3, "name": "3", "path": "3_Normalize", "type": "sentence_transformers.models.Normalize"},
]
DENSE = {"linear.weight": torch.arange(6.0).view(2, 3), "linear.bias": torch.zeros(2)}


def furnish(folder: Path) -> Path:
    """Adds all kinds of files to a checkpoint."""
    for name in (*PLAIN, *LEFT):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(json.dumps({"file": name}))
    (folder / "modules.json").write_text(json.dumps(MODULES))
    save_file(DENSE, folder / "2_Dense" / "model.safetensors")
    return folder


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return furnish(checkpoint(BertModel, tmp_path / "source"))


def sharded(source: Path, folder: Path) -> ShardStore:
    return shard_checkpoint(source, folder / "store", quantizer="gobo")


def same_companions(source: Path, store: ShardStore) -> None:
    for name in (*PLAIN, "modules.json", "tokenizer.json", "tokenizer_config.json", "2_Dense/model.safetensors"):
        assert (store.path / name).read_bytes() == (source / name).read_bytes(), name
    assert not [name for name in LEFT if (store.path / name).exists()]
    assert verify_store(store) == []


def test_they_come_along_as_they_are(source: Path, tmp_path: Path) -> None:
    same_companions(source, sharded(source, tmp_path))


def test_they_stay_when_a_store_is_reordered(source: Path, tmp_path: Path) -> None:
    store = sharded(source, tmp_path)
    config = BertModel.from_pretrained(source).config
    order = [list(reversed(range(store.grid.slices)))] * store.grid.layers
    same_companions(source, reorder_store(store, get_architecture(config), order))


def vocabulary_files() -> Iterator[str]:
    """The names of files that tokenizers of Transformers are made of, read from its source."""
    folder = Path(transformers.__file__).parent
    for path in (*folder.glob("tokenization_*.py"), *folder.glob("models/*/tokenization_*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            named = isinstance(node, ast.Assign) and "vocab_files_names" in ast.unparse(node.targets[0]).lower()
            if named and isinstance(node.value, ast.Dict):
                yield from (one.value for one in node.value.values if isinstance(one, ast.Constant))


def test_tokenizers_of_every_kind() -> None:
    known = {str(name) for name in vocabulary_files()}
    assert {"vocab.txt", "spiece.model", "source.spm"} <= known
    assert known <= set(PATTERNS)


@pytest.mark.parametrize("name", ["generation_config.json", "additional_chat_templates/new.jinja", "2_Dense/new.txt"])
def test_another_companion_makes_another_store(source: Path, name: str) -> None:
    def path() -> Path:
        return resolve_store(source, "gobo").path

    before = path()
    (source / name).write_text("{}")
    after = path()
    assert (after / name).read_text() == "{}"
    (source / name).write_text('{"and": "another"}')
    assert len({before, after, path()}) == 3
    (source / "README.md").write_text("something else")
    assert len({before, after, path()}) == 3


def test_a_private_companion_makes_a_private_store(source: Path, tmp_path: Path) -> None:
    (source / "2_Dense" / "tables").chmod(0o700)
    store = sharded(source, tmp_path)
    assert {path.stat().st_mode & 0o077 for path in (store.path, *store.path.rglob("*"))} == {0}


# Where it is.


def test_a_subfolder(source: Path, tmp_path: Path) -> None:
    store = shard_checkpoint(source.parent, tmp_path / "store", quantizer="gobo", subfolder=source.name)
    same_companions(source, store)


@pytest.mark.parametrize("subfolder", ["", "small"])
def test_on_the_hub(tmp_path: Path, subfolder: str) -> None:
    repository = tmp_path / "hub" / "models--someone--model"
    (repository / "refs").mkdir(parents=True)
    (repository / "refs" / "main").write_text("a" * 40)
    source = furnish(checkpoint(BertModel, repository / "snapshots" / ("a" * 40) / subfolder))
    store = shard_checkpoint(
        "someone/model", tmp_path / "store", quantizer="gobo", cache_dir=str(tmp_path / "hub"), subfolder=subfolder
    )
    same_companions(source, store)


def test_what_is_asked_of_the_hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: Path) -> None:
    """Only files that match, of the commit that the configuration is of."""
    commit = "a" * 40
    snapshot = tmp_path / "snapshots" / commit
    every = [path.relative_to(source.parent).as_posix() for path in source.rglob("*") if path.is_file()]
    fetched = []

    def snapshot_download(name: str, *, revision: str, token: str, allow_patterns: list[str]) -> str:
        assert (name, revision, token) == ("someone/model", commit, "secret")
        for found in filter_repo_objects(every, allow_patterns=allow_patterns):
            fetched.append(found)
            (snapshot / found).parent.mkdir(parents=True, exist_ok=True)
            os.link(source.parent / found, snapshot / found)
        return str(snapshot)

    def cached_file(name: str, file: str, **arguments: Any) -> str | None:
        if not (source / file).is_file():
            return None
        (snapshot / "source").mkdir(parents=True, exist_ok=True)
        if not (snapshot / "source" / file).exists():
            os.link(source / file, snapshot / "source" / file)
        return str(snapshot / "source" / file)

    monkeypatch.setattr(sources, "snapshot_download", snapshot_download)
    monkeypatch.setattr(sources, "cached_file", cached_file)
    hub = sources.Source.of("someone/model", subfolder="source", token="secret")
    expected = {*PLAIN, "modules.json", "tokenizer.json", "tokenizer_config.json", "2_Dense/model.safetensors"}
    assert companion_files(hub).keys() == expected
    unused = {"source/2_Dense/optimizer.pt"}
    assert set(fetched) == {f"source/{name}" for name in expected} | unused


# Pickles, and other models.


def test_weights_of_a_module_travel_as_safetensors(source: Path, tmp_path: Path) -> None:
    (source / "2_Dense" / "model.safetensors").unlink()
    torch.save({**DENSE, "again": DENSE["linear.weight"].T}, source / "2_Dense" / "pytorch_model.bin")
    store = sharded(source, tmp_path)
    assert not (store.path / "2_Dense" / "pytorch_model.bin").exists()
    found = load_file(store.path / "2_Dense" / "model.safetensors")
    assert found.keys() == {*DENSE, "again"}
    assert all(torch.equal(found[name], tensor) for name, tensor in DENSE.items())


def test_safetensors_are_preferred_to_a_pickle(source: Path, tmp_path: Path) -> None:
    (source / "2_Dense" / "pytorch_model.bin").write_bytes(b"never read")
    same_companions(source, sharded(source, tmp_path))
    assert not list((tmp_path / "store").rglob("*.bin"))


class Harm:
    def __reduce__(self) -> Any:
        return os.mkdir, ("harmed",)


def test_a_pickle_that_is_not_weights(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (source / "2_Dense" / "model.safetensors").unlink()
    (source / "2_Dense" / "pytorch_model.bin").write_bytes(pickle.dumps(Harm()))
    refused(source, tmp_path, "damaged or incomplete, pytorch_model.bin")
    assert not (tmp_path / "harmed").exists()


def test_another_model_in_a_module_folder_stays(source: Path, tmp_path: Path) -> None:
    checkpoint(BertModel, source / "2_Dense" / "inner")
    same_companions(source, sharded(source, tmp_path))
    assert not (tmp_path / "store" / "2_Dense" / "inner").exists()


# What is refused.


@pytest.mark.parametrize("path", ["../outside", "/etc", "1_Pooling/../../outside"])
def test_a_module_outside_of_the_checkpoint(source: Path, tmp_path: Path, path: str) -> None:
    (source / "modules.json").write_text(json.dumps([{**MODULES[0], "path": path}]))
    refused(source, tmp_path, "names the folder .* which is not inside of it")


@pytest.mark.parametrize("content", ["[", "{}x", "[1]", '[{"idx": 0}]', '[{"path": 3}]', '{"path": ""}'])
def test_a_damaged_list_of_modules(source: Path, tmp_path: Path, content: str) -> None:
    (source / "modules.json").write_text(content)
    refused(source, tmp_path, r"modules\.json is damaged: it is not a list of modules")


@pytest.mark.parametrize("name", ["tokenizer.json", "modules.json", "2_Dense/model.safetensors"])
def test_a_pointer_of_git_lfs(source: Path, tmp_path: Path, name: str) -> None:
    (source / name).write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n")
    refused(source, tmp_path, rf"{name} is only a pointer of Git LFS")


def test_the_command_takes_them_too(source: Path, tmp_path: Path) -> None:
    assert cli.main(["shard", str(source), str(tmp_path / "store"), "--quantizer", "gobo"]) == 0
    same_companions(source, ShardStore.open(tmp_path / "store"))
