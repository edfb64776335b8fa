"""Tokenizes a sample of SST-2, each sentence padded to the benchmark's length: sti_hf's plan for it is what counts."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

SAMPLE = "sst2.npz"
"""Name of the sample in the working folder: `input_ids` and `attention_mask` int64 `[n, tokens]`, `labels` `[n]`."""


def save_sample(checkpoint: Path, glue: str, count: int, tokens: int, path: Path) -> None:
    """Writes `count` validation sentences, or all if there are fewer, always the same ones."""
    from datasets import load_dataset
    from transformers import AutoTokenizer

    rows = load_dataset(glue, "sst2", split="validation").shuffle(seed=0)
    rows = rows.select(range(min(count, len(rows))))
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    batch = tokenizer(
        list(rows["sentence"]), padding="max_length", truncation=True, max_length=tokens, return_tensors="np"
    )
    ids, mask = (batch[name].astype(np.int64) for name in ("input_ids", "attention_mask"))
    np.savez(path, input_ids=ids, attention_mask=mask, labels=np.array(rows["label"]))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--glue", required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--tokens", type=int, required=True)
    parser.add_argument("--path", type=Path, required=True)
    save_sample(**vars(parser.parse_args()))


if __name__ == "__main__":
    main()
