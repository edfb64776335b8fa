"""Which files of a checkpoint are read, and what is wrong with them: one sentence each."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertForSequenceClassification, PreTrainedModel

from sti_hf import ShardStore, shard_checkpoint
from sti_hf.errors import ConfigurationError, SourceError, SourceNotFoundError, STIError
from sti_hf.integrations.full_model import full_model
from sti_hf.integrations.sources import Source
from sti_hf.integrations.store_cache import resolve_store
from tests.commands import Sti
from tests.models import tiny_model

POINTER = f"version https://git-lfs.github.com/spec/v1\noid sha256:{'0' * 64}\nsize 418\n"
SAFE, BIN, SAFE_INDEX, BIN_INDEX = (
    "model.safetensors",
    "pytorch_model.bin",
    "model.safetensors.index.json",
    "pytorch_model.bin.index.json",
)
KEY = "bert.encoder.layer.1.attention.self.key.weight"


def of_seed(seed: int) -> PreTrainedModel:
    return tiny_model(BertForSequenceClassification, seed=seed)


def write_weights(model: PreTrainedModel, path: Path) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if path.suffix == ".bin":
        torch.save(state, path)
    else:
        save_file(state, path, metadata={"format": "pt"})


def write_split(model: PreTrainedModel, folder: Path, index: str) -> None:
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    suffix = ".bin" if "bin" in index else ".safetensors"
    weight_map = {name: f"part-{position % 2}{suffix}" for position, name in enumerate(sorted(state))}
    for part in sorted(set(weight_map.values())):
        tensors = {name: tensor for name, tensor in state.items() if weight_map[name] == part}
        (torch.save if suffix == ".bin" else save_file)(tensors, folder / part)
    (folder / index).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


@pytest.fixture
def many(tmp_path: Path) -> dict[str, PreTrainedModel]:
    """The folder `many`, with weights of every kind, all others; by the name of their file."""
    of_seed(0).save_pretrained(tmp_path / "many")
    names = (SAFE, BIN, "model.fp16.safetensors", "pytorch_model.fp16.bin")
    models = {name: of_seed(seed) for seed, name in enumerate(names, 1)}
    for name, model in models.items():
        write_weights(model, tmp_path / "many" / name)
    for seed, name in enumerate((SAFE_INDEX, BIN_INDEX), 10):
        models[name] = of_seed(seed)
        write_split(models[name], tmp_path / "many", name)
    return models


def holds(store: ShardStore, model: PreTrainedModel) -> bool:
    found = full_model(store).state_dict()
    return all(torch.equal(found[name], tensor) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    ("options", "absent", "name"),
    [
        ({}, (), SAFE),
        ({}, (SAFE,), SAFE_INDEX),
        ({}, (SAFE, SAFE_INDEX), BIN),
        ({}, (SAFE, SAFE_INDEX, BIN), BIN_INDEX),
        ({"use_safetensors": True}, (), SAFE),
        ({"use_safetensors": False}, (), BIN),
        ({"use_safetensors": False}, (BIN,), BIN_INDEX),
        ({"variant": "fp16"}, (), "model.fp16.safetensors"),
        ({"variant": "fp16", "use_safetensors": False}, (), "pytorch_model.fp16.bin"),
    ],
    ids=str,
)
def test_the_weights_are_those_that_transformers_reads(
    many: dict[str, PreTrainedModel], tmp_path: Path, options: dict[str, Any], absent: tuple[str, ...], name: str
) -> None:
    for other in absent:
        (tmp_path / "many" / other).unlink()
    stock = BertForSequenceClassification.from_pretrained(tmp_path / "many", **options)
    assert all(torch.equal(stock.state_dict()[key], tensor) for key, tensor in many[name].state_dict().items())
    assert holds(shard_checkpoint(tmp_path / "many", tmp_path / "store", quantizer="gobo", **options), many[name])
    cached = resolve_store(tmp_path / "many", "gobo", **options)
    assert holds(cached, many[name])
    assert resolve_store(tmp_path / "many", "gobo", **options).path == cached.path


def test_files_that_are_asked_for_and_not_there(many: dict[str, PreTrainedModel], tmp_path: Path) -> None:
    for options, name in (
        ({"variant": "fp8"}, r"model\.fp8\.safetensors"),
        ({"variant": "fp8", "use_safetensors": False}, r"no file named pytorch_model\.fp8\.bin"),
        ({"subfolder": "none"}, "There is no folder .*none"),
    ):
        with pytest.raises(SourceNotFoundError, match=name):
            resolve_store(tmp_path / "many", "gobo", **options)
    with pytest.raises(ConfigurationError, match="colour="):
        resolve_store(tmp_path / "many", "gobo", colour="red")


def broken_weights(folder: Path, how: str) -> None:
    """Does to the weights of a checkpoint what `how` says."""
    path = folder / (BIN if how.startswith("bin") else SAFE)
    content, state = (folder / SAFE).read_bytes(), load_file(folder / SAFE)
    (folder / SAFE).unlink()
    match how.removeprefix("bin "):
        case "empty":
            path.write_bytes(b"")
        case "pointer":
            path.write_text(POINTER)
        case "noise":
            path.write_bytes(bytes(range(256)) * 40)
        case "cut":
            write_weights(of_seed(0), path)
            path.write_bytes(path.read_bytes()[:-5000])
        case "header":
            path.write_bytes((10**9).to_bytes(8, "little") + content[8:])
        case "list":
            torch.save([1, 2], path)
        case "wrapped":
            torch.save({"state_dict": state}, path)
        case "pickle":
            path.write_bytes(pickle.dumps(Exploding()))
        case dtype:
            state[KEY] = (state[KEY] * 10).to(getattr(torch, dtype))
            (torch.save if path.suffix == ".bin" else save_file)(state, path)


class Exploding:
    """What must not be unpickled."""

    def __reduce__(self) -> Any:
        return (pytest.fail, ("it was unpickled",))


DAMAGE = ("empty", "pointer", "noise", "cut", "header", "int8", "int64", "uint8", "float8_e4m3fn", "bool")
DAMAGED_BIN = ("empty", "pointer", "noise", "cut", "list", "wrapped", "pickle", "int8", "complex64")


@pytest.mark.parametrize("how", [*DAMAGE, *(f"bin {how}" for how in DAMAGED_BIN)])
def test_broken_weights(classifier: Path, tmp_path: Path, sti: Sti, how: str) -> None:
    source = shutil.copytree(classifier, tmp_path / "broken")
    broken_weights(source, how)
    name = BIN if how.startswith("bin") else SAFE
    check_refused(sti, source, tmp_path, f"{name}.*pointer.*git lfs pull" if "pointer" in how else name)


@pytest.mark.parametrize("content", ["", "{", "[]", '"text"', POINTER, "\x00\x01", '{"model_type": "bert"'])
def test_broken_configurations(classifier: Path, tmp_path: Path, sti: Sti, content: str) -> None:
    source = shutil.copytree(classifier, tmp_path / "broken")
    (source / "config.json").write_text(content)
    check_refused(sti, source, tmp_path, r"config\.json is (damaged|only a pointer)")


@pytest.mark.parametrize(
    ("weight_map", "sentence"),
    [
        ({KEY: "part-0.safetensors"}, r"lacks \d+ of the weights"),
        ({KEY: "part-7.safetensors"}, r"lacks 1 of the 1 files .* such as part-7"),
        ({KEY: "../classifier/model.safetensors"}, "not inside"),
        ({KEY: "/etc/passwd"}, "not inside"),
        ({KEY: 7}, "not inside"),
        ({}, "has no weight_map"),
        (None, "has no weight_map"),
    ],
)
def test_broken_indices(classifier: Path, tmp_path: Path, sti: Sti, weight_map: Any, sentence: str) -> None:
    source = shutil.copytree(classifier, tmp_path / "broken")
    (source / SAFE).unlink()
    write_split(of_seed(0), source, SAFE_INDEX)
    (source / SAFE_INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    check_refused(sti, source, tmp_path, sentence)


def test_a_weight_that_two_files_hold(classifier: Path, tmp_path: Path, sti: Sti) -> None:
    source = shutil.copytree(classifier, tmp_path / "broken")
    (source / SAFE).unlink()
    write_split(of_seed(0), source, SAFE_INDEX)
    write_weights(of_seed(0), source / "part-1.safetensors")
    check_refused(sti, source, tmp_path, r"holds the weight .* twice, in part-1\.safetensors")


def test_what_is_no_checkpoint(classifier: Path, tmp_path: Path, sti: Sti) -> None:
    (tmp_path / "nothing").mkdir()
    check_refused(sti, tmp_path / "nothing", tmp_path, r"is not a checkpoint: it has no config\.json")
    check_refused(sti, classifier / SAFE, tmp_path, "is a file; give the folder")
    outside = shutil.copytree(classifier, tmp_path / "outside")
    config = json.loads((outside / "config.json").read_text())
    (outside / "config.json").write_text(json.dumps({**config, "transformers_weights": "../x.safetensors"}))
    check_refused(sti, outside, tmp_path, "not inside")
    for name in ("", " ", "a b", "a/b/c"):
        with pytest.raises(SourceNotFoundError, match="There is no folder"):
            Source.of(name)


def check_refused(sti: Sti, source: Path, folder: Path, sentence: str) -> None:
    """One line of `sti shard`, one `STIError` in Python, and nothing written."""
    before = sorted(folder.rglob("*"))
    result = sti("shard", source, folder / "store")
    assert (result.status, result.out, len(result.err.splitlines())) == (2, "", 1)
    assert result.err.startswith("sti: error: ")
    assert len(result.err) < 700
    with pytest.raises(STIError, match=sentence) as error:
        shard_checkpoint(source, folder / "store")
    assert isinstance(error.value, SourceError)
    with pytest.raises(SourceError, match=sentence):
        resolve_store(source, "gobo")
    assert sorted(folder.rglob("*")) == before
