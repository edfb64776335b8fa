"""What comes along from a checkpoint into its store: all that users read beside its configuration and weights."""

from __future__ import annotations

import glob
import json
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath

from safetensors.torch import save
from transformers.utils import (
    AUDIO_TOKENIZER_NAME,
    CHAT_TEMPLATE_DIR,
    CHAT_TEMPLATE_FILE,
    CONFIG_NAME,
    FEATURE_EXTRACTOR_NAME,
    GENERATION_CONFIG_NAME,
    IMAGE_PROCESSOR_NAME,
    LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE,
    PROCESSOR_NAME,
    SAFE_WEIGHTS_NAME,
    VIDEO_PROCESSOR_NAME,
    WEIGHTS_NAME,
)

from sti_hf.errors import SourceError
from sti_hf.integrations.sources import Source, read_json, refuse_pointer
from sti_hf.integrations.tokenizer import TOKENIZER_FILES
from sti_hf.integrations.weight_files import read_weights

MODULES_FILE = "modules.json"
"""Where sentence-transformers lists the modules of a model, each with the folder that it is in."""

PATTERNS = (
    *TOKENIZER_FILES,
    "tokenizer.*.json",  # for other versions of Transformers; tokenizer_config.json names them
    CHAT_TEMPLATE_FILE,
    LEGACY_PROCESSOR_CHAT_TEMPLATE_FILE,
    f"{CHAT_TEMPLATE_DIR}/*.jinja",
    GENERATION_CONFIG_NAME,
    FEATURE_EXTRACTOR_NAME,
    IMAGE_PROCESSOR_NAME,
    VIDEO_PROCESSOR_NAME,
    AUDIO_TOKENIZER_NAME,
    PROCESSOR_NAME,
    MODULES_FILE,
    "config_sentence_transformers.json",
    "sentence_*_config.json",  # of a Transformer module, named after the first families: sentence_bert_config.json
)
"""The files, in the terms of `fnmatch`."""

PICKLES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})


def companion_files(source: Source) -> dict[str, Path]:
    """Where they are on this machine (fetched, if need be), by their paths in the store, `/` between folders.

    Of sentence-transformers they include the folders that `modules.json` names, without a model of Transformers that
    is in one, and without pickles. Weights of a module that are a pickle alone stand under the name that they have as
    safetensors (see `pickled_weights`). Raises `SourceError` where `modules.json` is damaged or names a folder outside
    of the checkpoint, or a file is only a pointer of Git LFS.
    """
    folder = source.fetch(PATTERNS)
    paths = {path for pattern in PATTERNS for path in folder.glob(pattern) if path.is_file()}
    modules = _module_folders(source, folder / MODULES_FILE)
    if modules:
        folder = source.fetch([f"{glob.escape(module)}/*" for module in modules])
    paths |= {path for module in modules for path in _module_files(folder / module)}
    for path in paths:
        refuse_pointer(path)
    return {_name_in_store(path.relative_to(folder)): path for path in sorted(paths)}


def pickled_weights(source: Source, companions: Mapping[str, Path]) -> dict[str, bytes]:
    """The content, as safetensors, of the companions that are pickles. Raises `SourceError` where one is damaged, or
    holds what is not weights."""
    found = {name: path for name, path in companions.items() if path.suffix in PICKLES}
    return {
        name: save({key: weight.clone().contiguous() for key, weight in read_weights(source, [path]).items()})
        for name, path in found.items()
    }


def copy_companions(companions: Mapping[str, Path], weights: Mapping[str, bytes], folder: Path) -> None:
    """Copies them into a folder; of those in `weights`, `pickled_weights`, the content there."""
    for name, path in companions.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        if name in weights:
            (folder / name).write_bytes(weights[name])
        else:
            shutil.copyfile(path, folder / name)


def _module_folders(source: Source, modules_file: Path) -> list[str]:
    """The folders that modules have of their own."""
    if not modules_file.is_file():
        return []
    refuse_pointer(modules_file)
    try:
        modules = json.loads(modules_file.read_bytes())
        folders = [PurePosixPath(module["path"]) for module in modules]
    except (ValueError, TypeError, KeyError) as error:
        raise SourceError(f"{modules_file} is damaged: it is not a list of modules with their paths.") from error
    for folder in folders:
        if folder.is_absolute() or ".." in folder.parts or "\0" in str(folder):
            raise SourceError(
                f"{source.name} names the folder {str(folder)!r} of a module, which is not inside of it."
            )
    return [str(folder) for folder in folders if folder.parts]


def _module_files(module: Path) -> Iterator[Path]:
    paths = [path for path in module.rglob("*") if path.is_file()]
    models = {path.parent for path in paths if path.name == CONFIG_NAME and "model_type" in read_json(path)}
    for path in paths:
        readable = path.suffix not in PICKLES or (path.name == WEIGHTS_NAME and not _as_safetensors(path).exists())
        if readable and not models.intersection(path.parents):
            yield path


def _as_safetensors(weights: Path) -> Path:
    return weights.with_name(SAFE_WEIGHTS_NAME)


def _name_in_store(path: Path) -> str:
    return (_as_safetensors(path) if path.suffix in PICKLES else path).as_posix()
