"""Threads that load, run, replan, close and fork models of one store, all at once: no answer may be wrong.

    python -m eval.stress_threads --model STORE --threads 8 --calls 1000

Answers are compared with those that one thread alone gets for the same texts and latencies. Ends with 1 where one is
wrong, a call hangs, an unexpected error comes, or threads, descriptors or memory have grown.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import sys
import threading
import time
import warnings
from collections import Counter
from typing import Any

import torch
from transformers import AutoModelForSequenceClassification

import sti_hf  # noqa: F401 - from_pretrained takes sti_config
from eval import accounting
from sti_hf.errors import SessionClosedError

LATENCIES = (0.05, 0.4)
LENGTHS = (12, 40, 100)
MODELS = 4
CHILD_SECONDS = 60
GROWN_BYTES = 64 << 20
"""What a warm process may grow by: allocators keep some."""

Answers = dict[int, list[torch.Tensor]]


def load(store: str, latency: float) -> Any:
    """A model of the store."""
    config = {"target_latency": latency, "preload_budget": "1MB", "seq_len": LENGTHS[0], "submodels": "any"}
    return AutoModelForSequenceClassification.from_pretrained(store, sti_config=config)


def inputs_of(length: int) -> dict[str, torch.Tensor]:
    """A text of so many tokens."""
    generator = torch.Generator().manual_seed(length)
    ids = torch.randint(1000, 20000, (1, length), generator=generator)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def right_answers(store: str) -> Answers:
    """By length, the logits at each latency."""
    answers: Answers = {length: [] for length in LENGTHS}
    for latency in LATENCIES:
        model = load(store, latency)
        with model.sti:
            for length in LENGTHS:
                answers[length].append(model(**inputs_of(length)).logits)
    return answers


class Stress:
    """Models that several threads use."""

    def __init__(self, store: str, answers: Answers) -> None:
        self.store, self.answers = store, answers
        self.models = [load(store, LATENCIES[0]) for _ in range(MODELS)]
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []

    def thread(self, seed: int, calls: int) -> None:
        """What one thread does: `calls` random things."""
        chance = random.Random(seed)
        kinds = ("forward", "replan", "load", "close", "fork")
        for _ in range(calls):
            kind = chance.choices(kinds, (70, 14, 8, 6, 2))[0]
            slot = chance.randrange(MODELS)
            try:
                getattr(self, kind)(slot, chance)
            except SessionClosedError:
                kind = "closed"
            except BaseException as error:
                self.errors.append(f"{kind}: {type(error).__name__}: {error}")
            self.counts[kind] += 1

    def forward(self, slot: int, chance: random.Random) -> None:
        """One answer, which must be one of the right ones."""
        self.check(self.models[slot], chance.choice(LENGTHS))

    def replan(self, slot: int, chance: random.Random) -> None:
        """Another latency."""
        self.models[slot].sti.replan(target_latency=chance.choice(LATENCIES))

    def load(self, slot: int, chance: random.Random) -> None:
        """A new model in the place of one that others may be using."""
        self.models[slot] = load(self.store, chance.choice(LATENCIES))

    def close(self, slot: int, chance: random.Random) -> None:
        """Closes a model that others may be using, and puts another in its place."""
        closed, self.models[slot] = self.models[slot], load(self.store, chance.choice(LATENCIES))
        closed.sti.close()

    def fork(self, slot: int, chance: random.Random) -> None:
        """A child that answers from the model of its parent."""
        child = os.fork()
        if child == 0:
            signal.alarm(CHILD_SECONDS)
            code = 1
            try:
                self.check(self.models[slot], chance.choice(LENGTHS))
                code = 0
            except SessionClosedError:
                code = 0
            finally:
                os._exit(code)
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        if code:
            raise AssertionError(f"a child ended with {code}")

    def check(self, model: Any, length: int) -> None:
        """Raises unless the model answers as one thread alone would."""
        logits = model(**inputs_of(length)).logits
        if not any(torch.allclose(logits, right, atol=1e-4) for right in self.answers[length]):
            raise AssertionError(f"wrong answer to {length} tokens: {logits.tolist()}")


def resources() -> dict[str, int]:
    """What the process has."""
    return {
        "threads": accounting.threads(),
        "descriptors": accounting.descriptors(),
        "resident_bytes": accounting.resident_set(),
    }


def run_threads(stress: Stress, threads: int, calls: int, seed: int) -> None:
    """Runs them to their end."""
    workers = [threading.Thread(target=stress.thread, args=(seed + i, calls), daemon=True) for i in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()


def main() -> int:
    """Runs the command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, metavar="STORE")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--calls", type=int, default=1000, help="of each thread")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    stress = Stress(options.model, right_answers(options.model))
    run_threads(stress, options.threads, max(options.calls // 10, 1), seed=1000)
    before, begun = resources(), time.perf_counter()
    run_threads(stress, options.threads, options.calls, seed=0)
    seconds, after = time.perf_counter() - begun, resources()
    grown = [name for name in ("threads", "descriptors") if after[name] > before[name]]
    grown += ["resident_bytes"] if after["resident_bytes"] > before["resident_bytes"] + GROWN_BYTES else []
    result = {"calls": dict(stress.counts), "seconds": seconds, "before": before, "after": after, "grown": grown}
    result["errors"] = stress.errors[:10]
    print(json.dumps(result, indent=None if options.json else 2))
    return 1 if stress.errors or grown else 0


if __name__ == "__main__":
    sys.exit(main())
