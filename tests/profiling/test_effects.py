"""Effects against finite differences."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import (
    BertForMaskedLM,
    BertForMultipleChoice,
    BertForQuestionAnswering,
    BertForSequenceClassification,
    BertForTokenClassification,
    DistilBertForSequenceClassification,
    GPT2LMHeadModel,
    MPNetForSequenceClassification,
    PreTrainedModel,
    RobertaModel,
)

from sti_hf.planning.effects import LEVELS
from sti_hf.profiling.effects import FRACTIONS, EffectsProbe, measure_effects
from sti_hf.profiling.next_tokens import NextTokenKL
from sti_hf.profiling.outputs import Batch, OutputMeasure, Projected, directions, read_outputs
from sti_hf.profiling.plan_weights import PlanWeights
from sti_hf.shards.layout import FULL
from sti_hf.shards.store import ShardStore
from tests.model.submodels import widths_of
from tests.models import HEADS, LAYERS, tiny_inputs, tiny_model
from tests.runtime.sessions import random_bits, store_of

STEP = 1e-4


def probe_of(
    model: PreTrainedModel, store: ShardStore, batches: list[Batch], outputs: OutputMeasure | None = None
) -> EffectsProbe:
    """A probe of a copy of the model."""
    twin = copy.deepcopy(model)
    return EffectsProbe(twin, PlanWeights(twin, store), batches, outputs)


def make_store(model: PreTrainedModel, folder: Path) -> ShardStore:
    """A store whose slices do not stand as in the checkpoint."""
    slices = widths_of(model)[-1]
    order = [
        torch.randperm(slices, generator=torch.Generator().manual_seed(layer)).tolist() for layer in range(LAYERS)
    ]
    return store_of(model, folder, slice_order=order)


class Reference:
    """A float64 model around some fidelities, with the weights of single shards moved."""

    def __init__(
        self, model: PreTrainedModel, store: ShardStore, bits: np.ndarray, outputs: OutputMeasure | None = None
    ) -> None:
        self.outputs = outputs or Projected()
        self.weights = PlanWeights(copy.deepcopy(model), store)
        self.model = copy.deepcopy(model).double()
        self.linears = {
            (layer, matrix.name): linear for layer, matrix, linear in PlanWeights(self.model, store).linears()
        }
        self.shards = []
        for layer, row in enumerate(bits):
            levels = {bits: self.weights.shards(layer, bits) for bits in np.unique(row).tolist()}
            self.shards.append(torch.stack([levels[fidelity][i] for i, fidelity in enumerate(row.tolist())]))

    @torch.no_grad()
    def slope(self, moves: dict[int, Tensor], batch: Batch, first_text: int = 0) -> Tensor:
        """Change of the outputs `[directions, texts]` per step in which layers' shards move so."""
        outputs = []
        for step in (STEP, -STEP):
            for layer, shards in enumerate(self.shards):
                moved = shards.double() + step * moves.get(layer, torch.zeros(1)).double()
                for name, weight in self.weights.weights(layer, moved).items():
                    self.linears[layer, name].weight.copy_(weight)
            outputs.append(self.outputs.directions(self.model(**batch), batch, first_text))
        return (outputs[0] - outputs[1]) / (2 * STEP)


@pytest.mark.parametrize(
    ("model_class", "outputs"),
    [
        (BertForSequenceClassification, Projected()),
        (MPNetForSequenceClassification, Projected()),
        (DistilBertForSequenceClassification, Projected()),
        (RobertaModel, Projected()),
        (BertForMaskedLM, Projected()),
        (BertForTokenClassification, Projected()),
        (BertForQuestionAnswering, Projected()),
        (BertForMultipleChoice, Projected()),
        (GPT2LMHeadModel, NextTokenKL()),
    ],
)
def test_effects_are_slopes(tmp_path: Path, model_class: type[PreTrainedModel], outputs: OutputMeasure) -> None:
    model = tiny_model(model_class)
    store = make_store(model, tmp_path / "store")
    bits = random_bits(store, 0)
    batch = tiny_inputs(model)
    effects = probe_of(model, store, [batch], outputs).measure(bits)
    reference = Reference(model, store, bits, outputs)
    slices = widths_of(model)[-1]
    random = np.random.default_rng(0)
    for layer, i, level in zip(random.integers(LAYERS, size=8), random.integers(slices, size=8), [0, 1, 2, 3, 4] * 2):
        layer = int(layer)
        move = torch.zeros_like(reference.shards[layer])
        move[i] = (reference.weights.shards(layer, LEVELS[level]) - reference.weights.shards(layer, FULL))[i]
        expected = reference.slope({layer: move}, batch).flatten().numpy()
        np.testing.assert_allclose(effects[layer, i, level], expected, rtol=2e-3, atol=2e-4 * np.abs(expected).max())


def test_padding_and_the_other_texts_of_a_batch_do_not_count(tmp_path: Path) -> None:
    model = tiny_model(BertForSequenceClassification)
    store = make_store(model, tmp_path / "store")
    bits = random_bits(store, 0)
    batch = tiny_inputs(model, batch=4, tokens=20)
    lengths = batch["attention_mask"].sum(1).tolist()
    assert len(set(lengths)) == 4
    alone = [{name: values[k : k + 1, :length] for name, values in batch.items()} for k, length in enumerate(lengths)]
    together = probe_of(model, store, [batch]).measure(bits)
    assert together.shape == (LAYERS, HEADS, len(LEVELS), 4)
    np.testing.assert_allclose(probe_of(model, store, alone).measure(bits), together, rtol=1e-3, atol=1e-6)


def test_frozen_models_and_callers_without_gradients_are_fine(tmp_path: Path) -> None:
    model = tiny_model(BertForSequenceClassification)
    store = make_store(model, tmp_path / "store")
    bits, batches = random_bits(store, 0), [tiny_inputs(model)]
    probe = probe_of(model, store, batches)
    expected = probe.measure(bits)
    assert all(parameter.grad is None for parameter in probe.model.parameters())
    with torch.no_grad():
        assert (probe_of(model.requires_grad_(False), store, batches).measure(bits) == expected).all()


def test_averaged_effects_add_up_to_what_the_outputs_move(tmp_path: Path) -> None:
    """The closer, the more points on the way are averaged; a text's error is small already with the default's."""
    model = tiny_model(BertForSequenceClassification)
    store = make_store(model, tmp_path / "store")
    bits = random_bits(store, 1)
    bits[bits == FULL] = 2
    batches = [tiny_inputs(model, batch=16)]
    probe = probe_of(model, store, batches)
    full = read_outputs(model, batches)
    probe.weights.set(bits)
    moved = (read_outputs(probe.model, batches) - full).flatten().numpy()

    def added_up(fractions: Sequence[float]) -> np.ndarray:
        effects = np.mean([probe.measure(bits, fraction) for fraction in fractions], axis=0)
        return np.take_along_axis(effects, bits[:, :, None, None] - 2, axis=2).sum(axis=(0, 1, 2))

    errors = [np.square(added_up(fractions) - moved).mean() for fractions in (FRACTIONS, (np.arange(20) + 0.5) / 20)]
    assert errors[0] < 0.02 * np.square(moved).mean()
    assert errors[1] < 1e-4 * np.square(moved).mean()


def test_three_classes_have_two_directions_that_keep_lengths(tmp_path: Path) -> None:
    model = tiny_model(BertForSequenceClassification, num_labels=3)
    batch = tiny_inputs(model)
    logits = model(**batch).logits
    centered = logits - logits.mean(1, keepdim=True)
    read = read_outputs(model, [batch])
    assert read.shape == (2, 3)
    torch.testing.assert_close(read.square().sum(0), centered.square().sum(1))


@pytest.mark.parametrize("model_class", [BertForMaskedLM, RobertaModel])
def test_projections_keep_mean_squares_over_the_tokens_that_count(model_class: type[PreTrainedModel]) -> None:
    model = tiny_model(model_class)
    batch = tiny_inputs(model, batch=2)
    output = model(**batch)
    values = output["logits"] if "logits" in output else output["last_hidden_state"]
    if "logits" in output:
        values = values - values.mean(-1, keepdim=True)
    mask = batch["attention_mask"]
    expected = (values.square().sum(-1) * mask).sum(1) / mask.sum(1)
    with torch.no_grad():
        squares = torch.stack([directions(output, batch, seed).square().sum(0) for seed in range(600)])
    torch.testing.assert_close(squares.mean(0), expected, rtol=0.15, atol=0)
    assert torch.equal(directions(output, batch, 3), directions(output, batch, 3))
    assert not torch.equal(directions(output, batch, 3), directions(output, batch, 4))


def test_the_profile_has_effects_and_checked_plans(tmp_path: Path) -> None:
    model = tiny_model(BertForSequenceClassification)
    store = make_store(model, tmp_path / "store")
    batches = [tiny_inputs(model, batch=6, seed=seed) for seed in range(3)]
    steps: list[int] = []
    profile = measure_effects(copy.deepcopy(model), store, batches, base_bits=3, progress=steps.append)
    assert profile.effects.shape == (LAYERS, HEADS, len(LEVELS), 9)
    assert sum(steps) == len(FRACTIONS) * len(batches) + len(profile.checked.bits)
    assert profile.checked.bits.min() == 3
    uniform = [(profile.checked.bits == bits).all(axis=(1, 2)) for bits in (3, 6)]
    assert profile.checked.distortion[uniform[1]] < 0.1 * profile.checked.distortion[uniform[0]]
    again = measure_effects(copy.deepcopy(model), store, batches, base_bits=3)
    assert (again.effects == profile.effects).all()
    assert (again.checked.distortion == profile.checked.distortion).all()


@pytest.mark.parametrize(
    ("batches", "options", "message"),
    [
        ([], {}, "at least 2 calibration texts"),
        ([{"input_ids": torch.ones(1, 3, dtype=torch.long)}], {}, "at least 2 calibration texts"),
        ([{"input_ids": torch.ones(2, 3, dtype=torch.long), "labels": torch.ones(2)}], {}, "must not have labels"),
        ([{"input_ids": torch.ones(2, 3, dtype=torch.long)}], {"base_bits": 32}, "base_bits must be one of"),
    ],
)
def test_bad_input(tmp_path: Path, batches: list[Batch], options: dict[str, int], message: str) -> None:
    model = tiny_model(BertForSequenceClassification)
    with pytest.raises(ValueError, match=message):
        measure_effects(model, make_store(model, tmp_path / "store"), batches, **options)
