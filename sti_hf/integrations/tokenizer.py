"""The tokenizer of a store."""

from __future__ import annotations

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from sti_hf.errors import SourceError
from sti_hf.integrations.sources import in_one_sentence
from sti_hf.shards.store import ShardStore

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    *("vocab.txt", "vocab.json", "merges.txt", "bpe.codes", "dict.txt", "entity_vocab.json"),
    *("sentencepiece.bpe.model", "sentencepiece.model", "spiece.model", "spm.model", "spm_char.model"),
    *("tokenizer.model", "tiktoken.model", "tekken.json", "prophetnet.tokenizer"),
    *("source.spm", "target.spm", "target_vocab.json", "vocab-src.json", "vocab-tgt.json"),
    *("byte_maps.json", "emoji.json", "normalizer.json", "word_pronunciation.json", "word_shape.json"),
)
"""The names under which tokenizers of Transformers save what they are."""


def load_tokenizer(store: ShardStore) -> PreTrainedTokenizerBase:
    """The store's tokenizer. Raises `SourceError` where it has none, or a damaged one."""
    if not any((store.path / name).exists() for name in TOKENIZER_FILES):
        raise SourceError(f"{store.path} has no tokenizer; put the checkpoint's tokenizer files into it.")
    with in_one_sentence(f"The tokenizer of {store.path} cannot be loaded"):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(store.path)
    return tokenizer
