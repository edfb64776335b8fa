"""The tokenizer of a store."""

from __future__ import annotations

import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sti_hf.errors import SourceError
from sti_hf.integrations.sources import Source, in_one_sentence
from sti_hf.shards.store import ShardStore

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "bpe.codes",
    "sentencepiece.bpe.model",
    "spiece.model",
)


def tokenizer_files(source: Source) -> list[Path]:
    """The files of a checkpoint's tokenizer; none where it has no tokenizer."""
    return [path for name in TOKENIZER_FILES if (path := source.find(name)) is not None]


def copy_tokenizer(source: Source, folder: Path) -> None:
    """Copies the tokenizer as it is. To load and save it would give a checkpoint without one an empty one."""
    for path in tokenizer_files(source):
        shutil.copyfile(path, folder / path.name)


def load_tokenizer(store: ShardStore) -> PreTrainedTokenizerBase:
    """The store's tokenizer. Raises `SourceError` where it has none, or a damaged one."""
    if not any((store.path / name).exists() for name in TOKENIZER_FILES):
        raise SourceError(f"{store.path} has no tokenizer; put the checkpoint's tokenizer files into it.")
    with in_one_sentence(f"The tokenizer of {store.path} cannot be loaded"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(store.path)
    return tokenizer
