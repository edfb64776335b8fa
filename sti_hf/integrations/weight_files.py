"""The weights of a checkpoint: its files, found as Transformers finds them, and the tensors in them."""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from sti_hf.errors import SourceError, SourceNotFoundError
from sti_hf.integrations.sources import Source, in_one_sentence, read_json, refuse_pointer

WEIGHT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def weight_files(source: Source, config: Mapping[str, Any]) -> list[Path]:
    """The files that hold the weights, and before them the index, where there is one.

    They are the ones that Transformers' `from_pretrained` would read: of one file before several, of safetensors
    before `.bin`, as far as `source.variant` and `source.use_safetensors` allow; `config`, the content of
    `config.json`, may name another (`transformers_weights`). Raises `SourceNotFoundError` where there are none,
    `SourceError` where the index is damaged, or a file that it names is missing or outside the checkpoint.
    """
    explicit = config.get("transformers_weights")
    names = [_inside(source, explicit)] if explicit is not None else list(_usual_names(source))
    for name in names:
        path = source.find(name)
        if path is not None:
            return [path, *_indexed_files(source, path)] if name.endswith(".json") else [path]
    raise SourceNotFoundError(f"{source.name} has no weights: there is no file named {' or '.join(names)}.")


def _usual_names(source: Source) -> Iterator[str]:
    variant = f".{source.variant}" if source.variant else ""
    if source.use_safetensors is not False:
        yield f"model{variant}.safetensors"
        yield f"model.safetensors.index{variant}.json"
    if not source.use_safetensors:
        yield f"pytorch_model{variant}.bin"
        yield f"pytorch_model.bin.index{variant}.json"


def _inside(source: Source, name: Any) -> str:
    if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise SourceError(f"{source.name} names the file {name!r} for its weights, which is not inside of it.")
    return name


def _indexed_files(source: Source, index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise SourceError(f"{index} is damaged: it has no weight_map; fetch it again.")
    names = sorted({_inside(source, name) for name in weight_map.values()})
    found = {name: source.find(name) for name in names}
    if absent := [name for name, path in found.items() if path is None]:
        raise SourceError(
            f"{source.name} lacks {len(absent)} of the {len(names)} files that {index.name} names, such as "
            f"{absent[0]}; fetch it again."
        )
    return [path for path in found.values() if path is not None]


def read_weights(source: Source, files: list[Path]) -> dict[str, Tensor]:
    """The tensors of these files (an index among them is passed over) by name: mapped, not read, where they can be.

    Raises `SourceError` where a file is damaged, or holds what is not the weights of a model.
    """
    weights: dict[str, Tensor] = {}
    for path in files:
        if path.suffix == ".json":
            continue
        refuse_pointer(path)
        with in_one_sentence(f"The weights of {source.name} are damaged or incomplete, {path.name}: fetch them again"):
            tensors = _read_safetensors(path) if path.suffix == ".safetensors" else _read_bin(path)
        for name, tensor in tensors.items():
            _check(path, name, tensor)
            if name in weights:
                raise SourceError(f"{source.name} holds the weight {name} twice, in {path.name} the second time.")
            weights[name] = tensor
    return weights


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is not a mapping


def _read_bin(path: Path) -> dict[str, Tensor]:
    with warnings.catch_warnings():  # of a pickle that it then refuses
        warnings.simplefilter("ignore")
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    if not isinstance(content, Mapping):
        raise SourceError(f"{path} does not hold a model's weights by name, but a {type(content).__name__}.")
    return dict(content)


def _check(path: Path, name: Any, tensor: Any) -> None:
    if not isinstance(name, str) or not isinstance(tensor, Tensor) or tensor.layout != torch.strided:
        raise SourceError(f"{path} does not hold a model's weights: {name!r} is not a plain tensor.")
    named_as_weight = name.endswith(("weight", "bias"))
    if tensor.dtype not in WEIGHT_DTYPES and (named_as_weight or tensor.is_floating_point() or tensor.is_complex()):
        dtype = str(tensor.dtype).removeprefix("torch.")
        raise SourceError(
            f"{path} holds {name} as {dtype}, which is not a dtype of weights that can be sharded: it is quantized "
            "already, or damaged; take the checkpoint in float32, float16 or bfloat16."
        )
