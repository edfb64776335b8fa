"""A model is copied and pickled as its store and configurations, and reopens there."""

from __future__ import annotations

import copy
import io
import multiprocessing
import os
import pickle
import shutil
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForSequenceClassification, BertForSequenceClassification

from sti_hf.errors import StoreError, UnsupportedUseError
from tests.integrations.checkpoints import STOCK
from tests.models import tiny_inputs, tiny_model

INPUTS = tiny_inputs(tiny_model(BertForSequenceClassification))


@pytest.fixture
def model(classifier_store: Path) -> Any:
    model = AutoModelForSequenceClassification.from_pretrained(
        classifier_store, sti_config={"target_latency": 0.3, "preload_budget": "40KB"}
    )
    yield model
    model.sti.close()


def logits(model: Any) -> torch.Tensor:
    return model(**INPUTS).logits


def saved(model: Any) -> Any:
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    return torch.load(file, weights_only=False)


@pytest.mark.parametrize("again", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model)), saved])
def test_a_copy_is_a_model_of_its_own(model: Any, again: Any) -> None:
    expected = logits(model)
    model.sti.replan(target_latency=0.4)
    model.config.id2label = {0: "no", 1: "yes"}
    other = again(model)
    assert type(other) is type(model)
    assert other.sti is not model.sti
    assert other.sti.config.to_dict() == model.sti.config.to_dict()
    assert other.config.id2label == {0: "no", 1: "yes"}
    model.sti.close()
    assert torch.equal(logits(other), expected)
    other.sti.close()


def test_a_copy_has_the_dtype(model: Any) -> None:
    other = copy.deepcopy(model.bfloat16())
    assert other.dtype == torch.bfloat16
    assert torch.equal(logits(other), logits(model))
    other.sti.close()


def test_a_pickle_survives_another_directory(model: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(model.sti.store.path.parent)
    relative = AutoModelForSequenceClassification.from_pretrained(model.sti.store.path.name, sti_config={})
    pickled = pickle.dumps(relative)
    monkeypatch.chdir(tmp_path)
    other = pickle.loads(pickled)
    assert torch.equal(logits(other), logits(relative))
    for one in (other, relative):
        one.sti.close()


def answer_in_a_child(model: Any) -> tuple[int, list[float]]:
    return os.getpid(), logits(model).flatten().tolist()


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_a_pool_of_processes_answers(classifier_store: Path, method: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as here: a spawned process finds the device profile in the cache
    model = AutoModelForSequenceClassification.from_pretrained(classifier_store, sti_config=STOCK)
    expected = logits(model).flatten()
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context(method)) as pool:
        process, found = pool.submit(answer_in_a_child, model).result()
    assert process != os.getpid()
    assert torch.allclose(torch.tensor(found), expected, atol=1e-5)
    model.sti.close()


def test_datasets_map_takes_it(model: Any) -> None:
    rows = Dataset.from_dict({"input_ids": INPUTS["input_ids"].tolist()})

    def classify(row: dict[str, Any]) -> dict[str, Any]:
        return {"label": int(model(input_ids=torch.tensor([row["input_ids"]])).logits.argmax())}

    found = rows.map(classify)["label"]
    expected = [int(model(input_ids=ids[None]).logits.argmax()) for ids in INPUTS["input_ids"]]
    assert list(found) == expected


def test_a_part_is_refused_in_one_sentence(model: Any) -> None:
    for part in (model.sti, model.bert, model.bert.encoder, model.bert.encoder.layer[0], model.get_input_embeddings()):
        for again in (copy.deepcopy, pickle.dumps):
            with pytest.raises(UnsupportedUseError, match="copy the model"):
                again(part)


def test_changed_weights_are_not_lost_silently(model: Any) -> None:
    with torch.no_grad():
        model.classifier.weight.mul_(2)
    with pytest.raises(UnsupportedUseError, match=r"classifier\.weight of this model was changed"):
        copy.deepcopy(model)


def test_a_store_that_is_gone_is_one_sentence(classifier_store: Path, tmp_path: Path) -> None:
    shutil.copytree(classifier_store, tmp_path / "store")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "store", sti_config={})
    pickled = pickle.dumps(model)
    model.sti.close()
    shutil.rmtree(tmp_path / "store")
    with pytest.raises(StoreError, match="is not a store"):
        pickle.loads(pickled)
