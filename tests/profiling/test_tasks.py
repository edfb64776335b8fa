"""GLUE's tasks and their metrics."""

from __future__ import annotations

from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
from scipy import stats
from transformers import BertConfig

from sti_hf.profiling.metrics import chance, load_metric, score
from sti_hf.profiling.tasks import GLUE_TASKS, Task, get_task

LOCAL = Path(__file__).parents[2] / "eval" / "metrics" / "glue"
KEYS = {
    "cola": ["matthews_correlation"],
    "mnli": ["accuracy"],
    "mnli_mismatched": ["accuracy"],
    "mrpc": ["accuracy", "f1"],
    "qnli": ["accuracy"],
    "qqp": ["accuracy", "f1"],
    "rte": ["accuracy"],
    "sst2": ["accuracy"],
    "stsb": ["pearson", "spearmanr"],
    "wnli": ["accuracy"],
}
"""What GLUE reports (Wang et al., 2019, table 1)."""


def answers(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Predictions and references with a few mistakes."""
    random = np.random.default_rng(3)
    if name == "stsb":
        references = random.uniform(0, 5, 50).astype(np.float32)
        return (references + random.normal(0, 1, 50)).astype(np.float32), references
    references = random.integers(0, GLUE_TASKS[name].num_labels, 50)
    return np.where(random.random(50) < 0.7, references, 0), references


def by_hand(key: str, predictions: np.ndarray, references: np.ndarray) -> float:
    """The metric from its definition."""
    if key == "accuracy":
        return float((predictions == references).mean())
    if key == "pearson":
        return float(np.corrcoef(predictions, references)[0, 1])
    if key == "spearmanr":
        return float(np.corrcoef(stats.rankdata(predictions), stats.rankdata(references))[0, 1])
    true, false = ((predictions == 1) & (references == value) for value in (1, 0))
    tp, fp = true.sum(), false.sum()
    fn, tn = ((predictions == 0) & (references == 1)).sum(), ((predictions == 0) & (references == 0)).sum()
    if key == "f1":
        return float(2 * tp / (2 * tp + fp + fn))
    return float((tp * tn - fp * fn) / np.sqrt(float((tp + fp) * (tp + fn) * (tn + fp) * (tn + fn))))


def test_every_task_of_glue_is_there() -> None:
    assert sorted(GLUE_TASKS) == sorted(KEYS)
    assert {name for name, task in GLUE_TASKS.items() if task.is_regression} == {"stsb"}
    assert {name for name, task in GLUE_TASKS.items() if task.num_labels == 3} == {"mnli", "mnli_mismatched"}
    assert GLUE_TASKS["mnli"].split == "validation_matched"
    assert GLUE_TASKS["mnli_mismatched"].split == "validation_mismatched"
    assert GLUE_TASKS["mnli_mismatched"].dataset_config == "mnli"


@pytest.mark.parametrize("name", GLUE_TASKS)
def test_the_local_metric(name: str) -> None:
    predictions, references = answers(name)
    values = load_metric(get_task(name), LOCAL)(predictions, references)
    assert list(values) == KEYS[name]
    for key, value in values.items():
        assert value == pytest.approx(by_hand(key, predictions, references), abs=1e-6)


def test_without_the_hub_it_is_the_checkouts() -> None:
    predictions, references = answers("mrpc")
    task = get_task("mrpc")
    assert load_metric(task)(predictions, references) == load_metric(task, LOCAL)(predictions, references)
    with pytest.raises(KeyError, match="Choose a configuration"):
        evaluate.load(str(LOCAL), "squad")


def test_the_chance_of_a_constant_answer() -> None:
    references = np.array([1, 1, 1, 0])
    assert chance(get_task("sst2"), load_metric(get_task("sst2"), LOCAL), references) == 0.75
    assert chance(get_task("cola"), load_metric(get_task("cola"), LOCAL), references) == 0.0
    assert chance(get_task("stsb"), load_metric(get_task("stsb"), LOCAL), references.astype(np.float32)) == 0.0


def test_scores() -> None:
    logits = torch.tensor([[2.0, 0.0], [0.0, 1.0], [3.0, 0.0]])
    labels = np.array([0, 1, 1])
    scored = score(get_task("mrpc"), load_metric(get_task("mrpc"), LOCAL), logits, labels)
    assert scored.value == pytest.approx(2 / 3)
    assert scored.metrics["f1"] == pytest.approx(2 / 3)
    expected = np.mean([np.log1p(np.exp(-2)), np.log1p(np.exp(-1)), np.log1p(np.exp(3))])
    assert scored.loss == pytest.approx(expected)
    swapped = score(
        get_task("mrpc"), load_metric(get_task("mrpc"), LOCAL), logits.flip(1), labels, torch.tensor([1, 0])
    )
    assert swapped == scored
    similarity = get_task("stsb")
    regression = score(similarity, load_metric(similarity, LOCAL), torch.tensor([[1.0], [2.0]]), np.float32([1, 4]))
    assert (regression.value, regression.loss) == (pytest.approx(1.0), pytest.approx(2.0))
    constant = score(similarity, load_metric(similarity, LOCAL), torch.ones(2, 1), np.float32([1, 4]))
    assert constant.value == 0.0, "an undefined correlation"


@pytest.mark.parametrize(
    ("config", "sentence"),
    [
        ({"num_labels": 3}, "Task sst2 has 2 labels, and the head of this BertForSequenceClassification has 3"),
        ({"architectures": ["BertForMaskedLM"]}, "needs a model for sequence classification, not a BertForMaskedLM"),
    ],
)
def test_heads_that_do_not_fit(config: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        get_task("sst2").check_head(BertConfig(**{"architectures": ["BertForSequenceClassification"], **config}))


def test_a_regression_needs_one_output() -> None:
    config = BertConfig(architectures=["BertForSequenceClassification"])
    with pytest.raises(ValueError, match=r"1 output \(a regression\)"):
        get_task("stsb").check_head(config)


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="no task 'squad'; choose one of cola"):
        get_task("squad")
    with pytest.raises(ValueError, match="one text column or two"):
        Task("t", (), "glue")
    with pytest.raises(ValueError, match="the key of a metric"):
        Task("t", ("text",), "glue", keys=())
    with pytest.raises(ValueError, match="num_labels must be at least 1"):
        Task("t", ("text",), "glue", num_labels=0)
    with pytest.raises(ValueError, match="'nothing-of-that-name' of task sst2 cannot be loaded"):
        load_metric(get_task("sst2"), "nothing-of-that-name")
    with pytest.raises(ValueError, match="connect to the Hub, or name the folder"):
        load_metric(Task("t", ("text",), "a-metric-that-is-not-there"))
    with pytest.raises(ValueError, match="Task t has no metric"):
        load_metric(Task("t", ("text",), None))
    one = Task("t", ("text",), lambda predictions, references: {"f2": 1.0})
    with pytest.raises(ValueError, match="The metric of task t has no 'accuracy'; it has f2"):
        load_metric(one)(np.array([1]), np.array([1]))
