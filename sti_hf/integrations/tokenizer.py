"""The tokenizer of a store."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sti_hf.errors import SourceError
from sti_hf.integrations.checkpoint import TOKENIZER_FILES
from sti_hf.shards.store import ShardStore


def load_tokenizer(store: ShardStore) -> PreTrainedTokenizerBase:
    """The store's tokenizer. Raises `ValueError` where it has none."""
    if not any((store.path / name).exists() for name in TOKENIZER_FILES):
        raise SourceError(f"{store.path} has no tokenizer; put the checkpoint's tokenizer files into it.")
    tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(store.path)
    return tokenizer
