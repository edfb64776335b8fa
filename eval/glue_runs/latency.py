"""Runs a store's model as one setting asks: times, bytes, memory, and answers to some sentences."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor

from eval.cold_forwards import WARM_UP, expecting_misses, running, timed_forward
from eval.disk import evict
from sti_hf import STIConfig
from sti_hf.planning import ExecutionPlan
from sti_hf.profiling.examples import Batch
from sti_hf.shards.store import ShardStore

FIRST_TOKEN = 10
"""Tokens below may be special."""


@dataclass(frozen=True)
class Measured:
    """One setting, run.

    - `plan`: that it ran, for the longest inputs.
    - `cold`: seconds of forwards before each of which the store's files were taken out of the page cache.
    - `back_to_back`: seconds of forwards one right after the other.
    - `bytes_read`, `row_bytes_read`: of shards and of embedding rows, the median of all these forwards.
    - `as_planned`: whether each read just the bytes of shards that the plan says.
    - `memory`: bytes of weights by buffer, `peak` among them.
    - `answers`: logits `[n, num_labels]` of the sentences that were asked for.
    """

    plan: ExecutionPlan
    cold: list[float]
    back_to_back: list[float]
    bytes_read: float
    row_bytes_read: float
    as_planned: bool
    memory: dict[str, int]
    answers: Tensor


def measure(store: ShardStore, config: STIConfig, runs: int, sentences: Sequence[Batch] = ()) -> Measured:
    """Runs `runs` cold forwards and as many back to back, of `config.seq_len` random tokens, then the sentences.

    The sentences run with the plan of the longest inputs, whatever their length.
    """
    with expecting_misses(), running(store, config) as model:
        plan = model.sti.plan
        inputs = torch.randint(
            FIRST_TOKEN,
            model.config.vocab_size,
            (WARM_UP + 2 * runs, 1, config.seq_len),
            generator=torch.Generator().manual_seed(0),
        )
        for tokens in inputs[:WARM_UP]:
            forward(model, tokens)
        cold, back_to_back, lines = [], [], []
        for tokens in inputs[WARM_UP : WARM_UP + runs]:
            evict(store.path)
            cold.append(forward(model, tokens))
            lines.append(model.sti.last_run)
        for tokens in inputs[WARM_UP + runs :]:
            back_to_back.append(forward(model, tokens))
            lines.append(model.sti.last_run)
        return Measured(
            plan=plan,
            cold=cold,
            back_to_back=back_to_back,
            bytes_read=median(line.bytes_read for line in lines),
            row_bytes_read=median(line.row_bytes_read for line in lines),
            as_planned=all(line.bytes_read == plan.streamed_bytes for line in lines),
            memory=model.sti.memory(),
            answers=answers(model, plan, sentences),
        )


def forward(model: Any, tokens: Tensor) -> float:
    """Seconds of one forward of `tokens` int64 `[1, tokens]`."""
    return timed_forward(model, {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)})


def answers(model: Any, plan: ExecutionPlan, sentences: Sequence[Batch]) -> Tensor:
    """Logits of sentences, one by one: float32 `[n, num_labels]`."""
    logits = torch.empty(len(sentences), model.config.num_labels)
    model.sti.use(plan)
    for batch in sentences:
        logits[batch.places] = model(**batch.inputs).logits.float()
    return logits
