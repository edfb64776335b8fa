"""The paper's importance, measured without executing layers in vain: the same as one whole forward a shard."""

from __future__ import annotations

import copy
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate import PartialState
from transformers import AutoTokenizer, BertForSequenceClassification, Olmo2ForSequenceClassification

from eval import bench_profiling
from sti_hf.model import layer_runner
from sti_hf.model.layer_runner import HiddenStates, LayerRunner
from sti_hf.profiling.evaluation import Evaluation
from sti_hf.profiling.examples import Examples
from sti_hf.profiling.exhaustive import choose_base, raised_scores, uniform_score
from sti_hf.profiling.importance import measure_exhaustive, measure_submodels
from sti_hf.profiling.plan_weights import PlanWeights
from sti_hf.profiling.shared_work import SharedWork
from sti_hf.profiling.submodels import coarse_grid
from sti_hf.profiling.tasks import Task
from sti_hf.shards.store import ShardStore
from tests.integrations.checkpoints import save_checkpoint
from tests.models import HEADS, KEY_VALUE_HEADS, LAYERS, TASK_HEADS, UNDROPPABLE, tiny_model
from tests.runtime.sessions import plan_of, running, store_of
from tests.tasks import TASK, centred, predicted_labels, sentences

CLASSIFIERS = sorted(
    {one for heads in TASK_HEADS.values() for one in heads if one.__name__.endswith("ForSequenceClassification")},
    key=lambda one: one.__name__,
)
SHARDS = [(layer, index) for layer in range(LAYERS) for index in range(HEADS)]


class Setting:
    """A tiny model, its store, and sentences that it is mostly right about."""

    def __init__(self, model_class: Any, folder: Path, task: Task = TASK, wrong: int = 4, **overrides: Any) -> None:
        # Of the tokenizers only BERT's is needed; families without token types do not take them.
        path = save_checkpoint(tiny_model(BertForSequenceClassification), folder / "tokenizer")
        self.tokenizer = AutoTokenizer.from_pretrained(path, model_input_names=["input_ids", "attention_mask"])
        if model_class.config_class.model_type in KEY_VALUE_HEADS:
            overrides["num_key_value_heads"] = HEADS
        self.model = tiny_model(model_class, **overrides)
        if not task.is_regression:
            centred(self.model, self.tokenizer)
        order = [np.random.default_rng(layer).permutation(HEADS).tolist() for layer in range(LAYERS)]
        droppable = model_class.config_class.model_type not in UNDROPPABLE
        self.store = store_of(self.model, folder / "store", "gobo", slice_order=order if droppable else None)
        texts = sentences(24)
        if task.is_regression:
            labels = np.random.default_rng(0).random(24, dtype=np.float32)
        else:
            labels = np.array(predicted_labels(self.model, self.tokenizer, texts, wrong))
        examples = Examples(tuple((text,) for text in texts), labels, np.arange(24))
        metric: Any = task.metric
        self.model.config.architectures = [model_class.__name__]
        self.evaluation = Evaluation.prepare(task, metric, examples, self.model, self.tokenizer, batch_size=7)
        self.twin = copy.deepcopy(self.model)
        self.weights = PlanWeights(self.twin, self.store)
        self.runner = LayerRunner(self.twin)

    def naive(self, bits: np.ndarray) -> tuple[float, float]:
        """Score and loss of a model with these fidelities, run as a whole."""
        model, weights = self._other
        weights.set(bits)
        batches = self.evaluation.batches
        with torch.no_grad():
            score = self.evaluation.score(lambda index: model(**batches[index].inputs).logits)
        return score.value, score.loss

    @cached_property
    def _other(self) -> tuple[Any, PlanWeights]:
        model = copy.deepcopy(self.model)
        return model, PlanWeights(model, self.store)


@pytest.mark.parametrize("model_class", CLASSIFIERS, ids=lambda one: one.__name__)
def test_as_one_whole_forward_a_shard(tmp_path: Path, model_class: Any) -> None:
    setting = Setting(model_class, tmp_path)
    measured = dict(raised_scores(setting.runner, setting.weights, setting.evaluation, 3, SHARDS))
    assert list(measured) == SHARDS
    for shard in SHARDS:
        bits = np.full((LAYERS, HEADS), 3)
        bits[shard] = 32
        assert (measured[shard].value, measured[shard].loss) == setting.naive(bits)
    assert len({score.loss for score in measured.values()}) == len(SHARDS)


def test_a_regression(tmp_path: Path) -> None:
    def metric(predictions: np.ndarray, references: np.ndarray) -> dict[str, float]:
        return {"pearson": float(np.corrcoef(predictions, references)[0, 1])}

    task = Task("similar", ("text",), metric, ("pearson",), num_labels=1)
    setting = Setting(BertForSequenceClassification, tmp_path, task, num_labels=1)
    measured = dict(raised_scores(setting.runner, setting.weights, setting.evaluation, 2, SHARDS))
    bits = np.full((LAYERS, HEADS), 2)
    bits[1, 2] = 32
    assert (measured[1, 2].value, measured[1, 2].loss) == setting.naive(bits)


def test_layers_are_not_executed_in_vain(tmp_path: Path) -> None:
    setting = Setting(BertForSequenceClassification, tmp_path)
    executed: list[int] = []
    for layer in setting.twin.bert.encoder.layer:
        layer.register_forward_hook(lambda module, args, output: executed.append(output.shape[0]))
    list(raised_scores(setting.runner, setting.weights, setting.evaluation, 2, SHARDS))
    tails = HEADS * LAYERS * (LAYERS + 1) // 2
    assert setting.runner.executions.sentences == sum(executed) == 24 * (tails + LAYERS - 1)
    tokens = sum(batch.inputs["input_ids"].numel() for batch in setting.evaluation.batches)
    assert setting.runner.executions.tokens == tokens * (tails + LAYERS - 1)
    before = setting.runner.executions.sentences
    some = [shard for shard in SHARDS if shard[0] == 2][:2]
    list(raised_scores(setting.runner, setting.weights, setting.evaluation, 2, some))
    assert setting.runner.executions.sentences - before == 24 * (2 + 2)
    assert len(setting.twin.bert.encoder.layer) == LAYERS, "the model is whole again"


def test_the_benchmark(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_checkpoint(tiny_model(BertForSequenceClassification), tmp_path / "model")
    monkeypatch.setattr("sys.argv", ["bench_profiling", "--model", str(path), "--samples", "9", "--json"])
    capsys.readouterr()
    bench_profiling.main()
    printed = json.loads(capsys.readouterr().out)
    assert printed["naive"]["sentences"] == 9 * LAYERS * LAYERS * HEADS
    assert printed["ours"]["sentences"] == 9 * (HEADS * LAYERS * (LAYERS + 1) // 2 + LAYERS - 1)
    assert (
        printed["ours"]["tokens"]
        < printed["naive"]["tokens"] * printed["ours"]["sentences"] / (printed["naive"]["sentences"])
    )


def test_hidden_states_in_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(BertForSequenceClassification, tmp_path)
    batches = [batch.inputs for batch in setting.evaluation.batches]
    in_memory = HiddenStates(setting.runner, batches)
    monkeypatch.setattr(layer_runner, "STATES_IN_MEMORY", 0)
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    in_file = HiddenStates(setting.runner, batches, scratch)
    assert list(scratch.iterdir()) == []
    for states in (in_memory, in_file):
        states.advance_to(2)
    for index, batch in enumerate(batches):
        assert torch.equal(in_memory.finish(index), in_file.finish(index))
        with torch.no_grad():
            assert torch.equal(in_file.finish(index), setting.twin(**batch).logits)


def test_the_base_is_the_lowest_that_moves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(BertForSequenceClassification, tmp_path)
    at = {2: 0.55, 3: 0.6, 4: 0.8, 5: 0.8, 6: 0.9, 32: 0.9}

    def score(runner: Any, weights: Any, evaluation: Any, bits: int) -> Any:
        return type("Score", (), {"value": at[bits]})

    monkeypatch.setattr("sti_hf.profiling.exhaustive.uniform_score", score)
    monkeypatch.setattr(Evaluation, "chance", 0.5)

    def chosen() -> int:
        return choose_base(setting.runner, setting.weights, setting.evaluation)

    assert chosen() == 4, "half-way from 0.5 to 0.9 is 0.7"
    at[3] = 0.7
    assert chosen() == 3
    at[2] = 0.95
    assert chosen() == 2
    at.update({2: 0.5, 3: 0.5, 4: 0.5, 5: 0.5})
    with pytest.raises(ValueError, match="at chance at every fidelity below 6 bits"):
        chosen()
    at[32] = 0.45
    with pytest.raises(ValueError, match=r"accuracy on tiny is 0.450, which is no better than chance \(0.500\)"):
        chosen()


def test_uniform_scores(tmp_path: Path) -> None:
    setting = Setting(BertForSequenceClassification, tmp_path)
    full = uniform_score(setting.runner, setting.weights, setting.evaluation, 32)
    assert full.value == pytest.approx(20 / 24), "four labels were flipped"
    assert setting.evaluation.chance == pytest.approx(0.5, abs=4 / 24)
    low = uniform_score(setting.runner, setting.weights, setting.evaluation, 2)
    assert (low.value, low.loss) == setting.naive(np.full((LAYERS, HEADS), 2))


def work(folder: Path) -> SharedWork:
    return SharedWork(folder, PartialState(cpu=True))


def test_the_profile(tmp_path: Path) -> None:
    setting = Setting(BertForSequenceClassification, tmp_path)
    profile, facts = measure_exhaustive(
        setting.runner, setting.weights, setting.evaluation, work(tmp_path / "work"), base_bits=2
    )
    for shard in SHARDS[::4]:
        bits = np.full((LAYERS, HEADS), 2)
        bits[shard] = 32
        assert (profile.scores[shard], profile.losses[shard]) == setting.naive(bits)
    assert (profile.base_score, profile.base_loss) == setting.naive(np.full((LAYERS, HEADS), 2))
    assert facts["full_score"] == setting.naive(np.full((LAYERS, HEADS), 32))[0]
    assert (facts["base_bits"], facts["raised_to"], facts["ties"]) == (2, 32, "by loss")
    with pytest.raises(ValueError, match="2 to 5 bits, not 6"):
        measure_exhaustive(setting.runner, setting.weights, setting.evaluation, work(tmp_path), base_bits=6)


def test_interrupted_and_taken_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    setting = Setting(BertForSequenceClassification, tmp_path)
    whole, _ = measure_exhaustive(
        setting.runner, setting.weights, setting.evaluation, work(tmp_path / "whole"), base_bits=2
    )
    stock, calls = setting.runner.finish, 0

    def interrupted(*arguments: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        if calls == 7 * len(setting.evaluation.batches):
            raise KeyboardInterrupt
        return stock(*arguments)

    monkeypatch.setattr(setting.runner, "finish", interrupted)
    with pytest.raises(KeyboardInterrupt):
        measure_exhaustive(setting.runner, setting.weights, setting.evaluation, work(tmp_path / "work"), base_bits=2)
    (file,) = (tmp_path / "work").iterdir()
    assert len(file.read_text().splitlines()) == 6
    with file.open("a") as cut:
        cut.write("[[0, 3], [0.")
    calls = -10_000
    again, _ = measure_exhaustive(
        setting.runner, setting.weights, setting.evaluation, work(tmp_path / "work"), base_bits=2
    )
    assert calls + 10_000 == (LAYERS * HEADS - 6) * len(setting.evaluation.batches)
    assert np.array_equal(again.scores, whole.scores)
    assert np.array_equal(again.losses, whole.losses)
    work(tmp_path / "work").forget()
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize("model_class", CLASSIFIERS, ids=lambda one: one.__name__)
def test_submodels_are_those_that_run(tmp_path: Path, model_class: Any) -> None:
    """The accuracy of n x m submodels is that of the runtime, which leaves the rest away."""
    setting = Setting(model_class, tmp_path)
    as_stored = np.tile(np.arange(HEADS), (LAYERS, 1))
    (measured,) = measure_submodels(
        setting.runner, setting.weights, setting.evaluation, work(tmp_path / "work"), as_stored
    )
    assert measured["slice_order"] == [list(order) for order in setting.store.stack.slice_order]
    accuracy = {(n, m): value for n, m, value in measured["accuracy"]}
    assert sorted(accuracy) == sorted(coarse_grid(LAYERS, HEADS))
    assert len(set(accuracy.values())) > 1
    for n, m in [(1, 1), (2, HEADS), (LAYERS, 2), (LAYERS, HEADS)]:
        assert accuracy[n, m] == streamed_accuracy(setting, setting.store, n, m)


def streamed_accuracy(setting: Setting, store: ShardStore, n: int, m: int) -> float:
    bits = np.zeros((store.grid.layers, store.grid.slices), dtype=np.int64)
    bits[:n, :m] = 6
    model = running(store, plan_of(store, bits))
    with torch.no_grad():
        score = setting.evaluation.score(lambda index: model(**setting.evaluation.batches[index].inputs).logits)
    model.sti.close()
    return score.value


def test_submodels_of_a_reordered_store(tmp_path: Path) -> None:
    setting = Setting(BertForSequenceClassification, tmp_path)
    order = np.array([np.random.default_rng(5 + layer).permutation(HEADS) for layer in range(LAYERS)])
    both = measure_submodels(setting.runner, setting.weights, setting.evaluation, work(tmp_path / "work"), order)
    then = np.take_along_axis(np.array(setting.store.stack.slice_order), order, axis=1)
    moved = store_of(setting.model, tmp_path / "moved", "gobo", slice_order=then.tolist())
    (measured,) = (one for one in both if one["slice_order"] == then.tolist())
    assert len(both) == 2
    for n, m, value in measured["accuracy"]:
        if (n, m) in [(2, 2), (3, 3), (1, 4)]:
            assert value == streamed_accuracy(setting, moved, n, m)
    executed = setting.runner.executions.sentences
    assert executed == 2 * 24 * HEADS * LAYERS, "one pass a width and order"


def test_submodels_of_slices_that_are_not_droppable_have_all(tmp_path: Path) -> None:
    setting = Setting(Olmo2ForSequenceClassification, tmp_path)
    slices, place = setting.store.grid.slices, work(tmp_path / "work")
    order = np.tile(np.arange(slices)[::-1], (LAYERS, 1))
    (measured,) = measure_submodels(setting.runner, setting.weights, setting.evaluation, place, order)
    assert [(n, m) for n, m, _ in measured["accuracy"]] == [(n, slices) for n in range(1, LAYERS + 1)]
    for n, m, value in measured["accuracy"]:
        assert value == streamed_accuracy(setting, setting.store, n, m)


def test_coarse_grid() -> None:
    assert coarse_grid(2, 8, droppable=False) == [(1, 8), (2, 8)]
    assert coarse_grid(6, 12) == [(n, m) for m in (3, 6, 9, 12) for n in (1, 2, 3, 4, 5, 6)]
    assert coarse_grid(1, 2) == [(1, 1), (1, 2)]
