"""From a dataset to batches."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    DistilBertForSequenceClassification,
    RobertaForSequenceClassification,
)

from sti_hf.profiling.examples import load_examples, longest_input, model_order, tokenize
from sti_hf.profiling.tasks import get_task
from tests.integrations.checkpoints import save_checkpoint
from tests.models import tiny_model
from tests.tasks import TASK, sentences, write_dataset


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "tiny"
    texts = sentences(21)
    write_dataset(folder, "validation", {"text": texts, "other": texts[::-1], "label": [n % 2 for n in range(21)]})
    write_dataset(folder, "test", {"text": texts, "label": [-1] * 21})
    return folder


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory: pytest.TempPathFactory) -> object:
    path = save_checkpoint(tiny_model(BertForSequenceClassification), tmp_path_factory.mktemp("tokenizer"))
    return AutoTokenizer.from_pretrained(path)


def test_a_whole_split(folder: Path) -> None:
    examples = load_examples(TASK, str(folder))
    assert [text for (text,) in examples.texts] == sentences(21)
    assert examples.labels.tolist() == [n % 2 for n in range(21)]
    assert examples.rows.tolist() == list(range(21))
    pairs = load_examples(replace(TASK, columns=("text", "other")), str(folder))
    assert pairs.texts[0] == (sentences(21)[0], sentences(21)[-1])


def test_halves_share_nothing(folder: Path) -> None:
    first, second = (load_examples(TASK, str(folder), part=part, seed=1) for part in ("first", "second"))
    assert len(first) == 10
    assert sorted([*first.rows, *second.rows]) == list(range(21))
    again = load_examples(TASK, str(folder), part="first", seed=1)
    assert again.texts == first.texts
    other = load_examples(TASK, str(folder), part="first", seed=2)
    assert other.rows.tolist() != first.rows.tolist()
    few = load_examples(TASK, str(folder), part="first", seed=1, samples=4)
    assert len(few) == 4
    assert set(few.rows) < set(first.rows)
    for text, label, row in zip(few.texts, few.labels, few.rows):
        assert (text, label) == ((sentences(21)[row],), row % 2)


def test_labels_are_not_always_needed(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"Split test of .* has no labels \(they are -1"):
        load_examples(TASK, str(folder), split="test")
    examples = load_examples(TASK, str(folder), split="test", labelled=False)
    assert len(examples) == 21
    assert not examples.labelled
    assert load_examples(TASK, str(folder), labelled=False).labelled
    nameless = replace(TASK, label="mark")
    assert not load_examples(nameless, str(folder), labelled=False).labelled


@pytest.mark.parametrize(
    ("task", "options", "sentence"),
    [
        (
            {"columns": ("text", "hypothesis")},
            {},
            "no column 'hypothesis', which task tiny needs; its columns are text",
        ),
        ({"label": "mark"}, {}, "no column 'mark'"),
        ({"label": "other"}, {}, "labels that are no classes"),
        ({"num_labels": 1, "label": "other"}, {}, "labels that are no numbers"),
        ({"num_labels": 1}, {"samples": 0}, "samples must be at least 1"),
        ({}, {"part": "third"}, "part must be one of all, first, second"),
        ({}, {"split": "train"}, 'cannot be loaded: Unknown split "train"'),
    ],
)
def test_mistakes(folder: Path, task: dict, options: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        load_examples(replace(TASK, **task), str(folder), **options)


def test_more_mistakes(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_examples(TASK, str(tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="cannot be loaded"):
        load_examples(TASK, str(tmp_path))
    write_dataset(tmp_path / "three", "validation", {"text": ["a", "b"], "label": [0, 2]})
    with pytest.raises(ValueError, match="has the label 2, and task tiny has 2 labels"):
        load_examples(TASK, str(tmp_path / "three"))
    write_dataset(tmp_path / "one", "validation", {"text": ["a"], "label": [0]})
    with pytest.raises(ValueError, match="no examples in part 'first'"):
        load_examples(TASK, str(tmp_path / "one"), part="first")


def test_batches(folder: Path, tokenizer: object) -> None:
    examples = load_examples(TASK, str(folder))
    batches = tokenize(examples, tokenizer, batch_size=4)
    assert sorted(np.concatenate([batch.places for batch in batches])) == list(range(21))
    lengths = torch.cat([batch.inputs["attention_mask"].sum(1) for batch in batches])
    assert (lengths.diff() >= 0).all()
    for batch in batches:
        for place, ids, mask in zip(batch.places, batch.inputs["input_ids"], batch.inputs["attention_mask"]):
            alone = tokenizer(examples.texts[place][0])["input_ids"]
            assert ids[mask.bool()].tolist() == alone
        assert batch.inputs["input_ids"].shape[1] == batch.inputs["attention_mask"].sum(1).max()
    (cut,) = {batch.inputs["input_ids"].shape[1] for batch in tokenize(examples, tokenizer, max_length=5)}
    assert cut == 5


def test_pairs_have_token_types_where_the_model_takes_them(folder: Path, tokenizer: object) -> None:
    pairs = load_examples(replace(TASK, columns=("text", "other")), str(folder))
    for model_class, taken in ((BertForSequenceClassification, True), (DistilBertForSequenceClassification, False)):
        model = tiny_model(model_class)
        for batch in tokenize(pairs, tokenizer, model=model):
            assert ("token_type_ids" in batch.inputs) == taken
            with torch.no_grad():
                assert model(**batch.inputs).logits.shape == (len(batch.places), 2)


@pytest.mark.parametrize(
    ("model_class", "longest"),
    [
        (BertForSequenceClassification, 70),
        (RobertaForSequenceClassification, 68),
        (DistilBertForSequenceClassification, 70),
    ],
)
def test_no_text_is_longer_than_the_model_takes(tokenizer: object, tmp_path: Path, model_class, longest: int) -> None:
    model = tiny_model(model_class)
    assert longest_input(model) == longest
    data = write_dataset(tmp_path, "validation", {"text": [" ".join(["word20"] * 200)], "label": [0]})
    (batch,) = tokenize(load_examples(TASK, str(data)), tokenizer, model=model)
    inputs = {name: values for name, values in batch.inputs.items() if name != "token_type_ids"}
    assert inputs["input_ids"].shape[1] == longest
    with torch.no_grad():
        model(**inputs)


def test_models_that_order_the_classes_otherwise(tmp_path: Path) -> None:
    names = ["entailment", "neutral", "contradiction"]
    features = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=names)})
    data = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "label": [0, 1, 2]}, features)
    data.to_parquet(tmp_path / "validation.parquet")
    task = replace(TASK, num_labels=3)
    examples = load_examples(task, str(tmp_path))
    assert examples.label_names == tuple(names)

    def order(labels: list[str]) -> list[int] | None:
        config = tiny_model(BertForSequenceClassification, num_labels=3).config
        config.id2label, config.label2id = dict(enumerate(labels)), {name: n for n, name in enumerate(labels)}
        found = model_order(task, examples, config)
        return None if found is None else found.tolist()

    assert order(["CONTRADICTION", "NEUTRAL", "ENTAILMENT"]) == [2, 1, 0]
    assert order(names) is None
    assert order(["LABEL_0", "LABEL_1", "LABEL_2"]) is None


@pytest.mark.parametrize("name", ["sst2", "mrpc", "qnli", "rte"])
def test_real_data(shared: Path, name: str) -> None:
    examples = load_examples(get_task(name), str(shared / "glue"), part="second", samples=50)
    assert len(examples) == 50
    assert len(examples.label_names) == 2
    assert set(examples.labels) == {0, 1}
    assert all(len(text) == len(get_task(name).columns) for text in examples.texts)
