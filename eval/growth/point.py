"""One size of model and input: what is predicted, and what is measured."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import MPNetForSequenceClassification

import sti_hf
from eval.cold_forwards import LATE, WARM_UP, expecting_misses, running, timed_forward
from eval.growth.models import Size, checkpoint
from sti_hf.integrations.device_profiles import device_profile
from sti_hf.integrations.store_planner import plan_store
from sti_hf.planning import Workload


@dataclass(frozen=True)
class Point:
    """A model and its input: `batch` texts of `tokens` tokens each."""

    layers: int
    width: int
    tokens: int
    batch: int

    @property
    def size(self) -> Size:
        """The model's."""
        return Size(self.layers, self.width)

    def inputs(self, count: int) -> list[dict[str, Tensor]]:
        """Random inputs."""
        generator = torch.Generator().manual_seed(0)
        ids = torch.randint(10, 30000, (count, self.batch, self.tokens), generator=generator)
        return [{"input_ids": each, "attention_mask": torch.ones_like(each)} for each in ids]


def at_lowest(store: sti_hf.ShardStore, point: Point, preload_budget: str) -> float:
    """Predicted seconds of a forward of the whole model at the lowest fidelity: T in terms of which targets are."""
    config = sti_hf.STIConfig(preload_budget=preload_budget, strategy="std_pipeline", fidelity=2)
    return plan_store(store, device_profile(store), config, Workload(point.tokens, point.batch)).predicted_latency


def measure(
    store: sti_hf.ShardStore,
    point: Point,
    factor: float,
    preload_budget: str,
    runs: int,
    make_cold: Callable[[Path], None],
) -> dict[str, Any]:
    """Cold forwards and cold starts at a T of `factor` times what `at_lowest` says. `make_cold` takes a store's files
    out of the page cache."""
    target = factor * at_lowest(store, point, preload_budget)
    config = sti_hf.STIConfig(
        target_latency=target,
        preload_budget=preload_budget,
        seq_len=point.tokens,
        batch_size=point.batch,
        submodels="any",
    )
    inputs = point.inputs(WARM_UP + runs)
    with expecting_misses():
        with running(store, config) as model:
            plan = model.sti.plan
            seconds = []
            for each in inputs:
                make_cold(store.path)
                seconds.append(timed_forward(model, each))
        answers = []
        for each in inputs[:runs]:
            make_cold(store.path)
            answers.append(_first_answer(store, config, each))
    seconds = seconds[WARM_UP:]
    return {
        **asdict(point),
        "factor": factor,
        "target_ms": target * 1e3,
        "feasible": plan.feasible,
        "submodel": plan.submodel,
        "mean_bits": float(plan.bits[plan.bits > 0].mean()),
        "predicted_ms": plan.predicted_latency * 1e3,
        "median_ms": median(seconds) * 1e3,
        "worst_ms": max(seconds) * 1e3,
        "share_in_time": sum(value < LATE * target for value in seconds) / runs,
        "ttfa_ms": median(answers) * 1e3,
    }


def stock_warm(point: Point, work: Path, runs: int) -> float:
    """Seconds of a warm forward of Transformers in float32."""
    model = MPNetForSequenceClassification.from_pretrained(checkpoint(point.size, work)).eval()
    with torch.no_grad():
        seconds = [timed_forward(model, each) for each in point.inputs(1 + runs)]
    return median(seconds[1:])


def _first_answer(store: sti_hf.ShardStore, config: sti_hf.STIConfig, inputs: dict[str, Tensor]) -> float:
    begun = time.perf_counter()
    with running(store, config) as model:
        model(**inputs)
        return time.perf_counter() - begun
