"""The accuracy of plans: what a model that runs from shards answers, on sentences that were not profiled on."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from eval.glue_runs.accuracy import PlanAccuracy
from eval.glue_runs.held_out import held_out
from sti_hf.profiling.examples import load_examples
from sti_hf.profiling.tasks import get_task
from tests.eval.conftest import TinyTask
from tests.runtime.sessions import plan_of, random_bits, running


@pytest.fixture(scope="module")
def accuracy(tiny_sst2: TinyTask) -> PlanAccuracy:
    return PlanAccuracy(tiny_sst2.store, get_task("sst2"), str(tiny_sst2.data), part="second")


@pytest.mark.parametrize("layers, slices", [(None, None), (2, 3), (1, 4)])
def test_logits_are_the_streamed_models(
    accuracy: PlanAccuracy, tiny_sst2: TinyTask, layers: int | None, slices: int | None
) -> None:
    bits = random_bits(tiny_sst2.store, 0, layers, slices)
    logits = accuracy.logits(bits)
    model = running(tiny_sst2.store, plan_of(tiny_sst2.store, bits))
    singles = accuracy.singles(20)
    assert sorted(int(batch.places[0]) for batch in singles) == list(range(20))
    with torch.no_grad():
        for batch in singles:
            assert torch.allclose(model(**batch.inputs).logits, logits[batch.places], atol=1e-4)
    model.sti.close()


def test_in_full_it_is_the_checkpoints(accuracy: PlanAccuracy, tiny_sst2: TinyTask) -> None:
    found = accuracy.of(np.full((3, 4), 32))
    examples = load_examples(get_task("sst2"), str(tiny_sst2.data), part="second")
    tokenizer: Any = AutoTokenizer.from_pretrained(tiny_sst2.checkpoint)
    model: Any = AutoModelForSequenceClassification.from_pretrained(tiny_sst2.checkpoint)
    with torch.no_grad():
        answers = [int(model(**tokenizer(text, return_tensors="pt")).logits.argmax()) for (text,) in examples.texts]
    right = np.mean(np.array(answers) == examples.labels)
    assert found.metric == pytest.approx(100 * right) == found.metrics["accuracy"]
    assert (found.agreement, found.distortion) == (100, 0)
    assert 60 < found.metric <= 100


def test_a_cheap_plan_agrees_less(accuracy: PlanAccuracy) -> None:
    found = accuracy.of(np.full((3, 4), 2))
    cheap, full = (accuracy.logits(np.full((3, 4), bits)) for bits in (2, 32))
    same = accuracy.same(cheap, full)
    assert found.agreement == pytest.approx(100 * float(same.float().mean()))
    assert found.agreement < 100
    margins = cheap.diff(dim=1) - full.diff(dim=1)
    assert found.distortion == pytest.approx(float(margins.square().mean()) / 2, rel=1e-4)


def test_only_the_first_layers_make_a_submodel(accuracy: PlanAccuracy) -> None:
    bits = np.full((3, 4), 2)
    bits[1] = 0
    with pytest.raises(ValueError, match="keeps the first layers"):
        accuracy.logits(bits)


def facts(part: str = "first", seed: int = 0, split: str = "validation") -> dict[str, Any]:
    return {"part": part, "seed": seed, "split": split}


def test_the_half_to_report_on() -> None:
    assert held_out({}, "validation") == ("second", 0)
    assert held_out({"a": facts(seed=3), "b": facts(seed=3)}, "validation") == ("second", 3)
    assert held_out({"a": facts("second")}, "validation") == ("first", 0)
    assert held_out({"a": facts("all", split="train"), "b": facts(seed=1)}, "validation") == ("second", 1)
    with pytest.raises(ValueError, match="'b' was measured on the whole of split validation"):
        held_out({"a": facts(), "b": facts("all")}, "validation")
    with pytest.raises(ValueError, match="a, b were measured on different halves"):
        held_out({"a": facts(), "b": facts(seed=1)}, "validation")
