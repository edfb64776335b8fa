"""A store gives back the stock model that it was made from."""

from __future__ import annotations

import json

import pytest
import torch
from transformers import BertForSequenceClassification, PreTrainedModel

from sti_hf.errors import StoreError
from sti_hf.integrations.full_model import full_model
from sti_hf.shards.store import RESIDENT_FILE, TABLES_FILE, ShardStore
from tests.model.submodels import random_orders
from tests.models import TASK_HEADS, tiny_inputs, tiny_model
from tests.runtime.sessions import logits_of, store_of

HEADS = ("Model", "ForSequenceClassification", "ForMaskedLM", "ForCausalLM")
CLASSES = sorted(
    {one for heads in TASK_HEADS.values() for one in heads if one.__name__.endswith(HEADS)},
    key=lambda one: one.__name__,
)


@pytest.mark.parametrize("model_class", CLASSES, ids=lambda one: one.__name__)
def test_it_is_the_checkpoint(tmp_path, model_class: type[PreTrainedModel]):
    model = tiny_model(model_class)
    twin = full_model(store_of(model, tmp_path / "store", "gobo", slice_order=random_orders(model)))
    assert type(twin) is model_class
    assert not twin.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], tensor), name
    inputs = tiny_inputs(model)
    with torch.no_grad():
        assert torch.equal(logits_of(twin(**inputs)), logits_of(model(**inputs)))


def test_it_is_not_initialized_again(tmp_path):
    model = tiny_model(CLASSES[0])
    twin = full_model(store_of(model, tmp_path / "store", "gobo"))
    twin.init_weights()
    assert all(torch.equal(twin.state_dict()[name], tensor) for name, tensor in model.state_dict().items())


def test_half_precision_becomes_float32(tmp_path):
    model = tiny_model(CLASSES[0]).bfloat16()
    twin = full_model(store_of(model, tmp_path / "store", "gobo"))
    for name, tensor in model.state_dict().items():
        assert torch.equal(twin.state_dict()[name], tensor.float() if tensor.is_floating_point() else tensor), name


def test_what_it_cannot_give(tmp_path):
    model = tiny_model(next(one for one in CLASSES if one.__name__ == "BertForSequenceClassification"))
    with pytest.raises(StoreError, match="no full weights"):
        full_model(store_of(model, tmp_path / "small", "gobo", full=False))
    headless = store_of(model, tmp_path / "headless", "gobo")  # of another class than its configuration says
    config = json.loads((headless.path / "config.json").read_text())
    (headless.path / "config.json").write_text(json.dumps({**config, "architectures": ["BertForMaskedLM"]}))
    with pytest.raises(StoreError, match=r"lacks 6 of the weights of BertForMaskedLM \(cls\.predictions\.bias, "):
        full_model(headless)


@pytest.mark.parametrize(("file", "sentence"), [(TABLES_FILE, "table word_embeddings"), (RESIDENT_FILE, "resident")])
def test_damage(tmp_path, file, sentence):
    store = store_of(tiny_model(BertForSequenceClassification), tmp_path / "store", "gobo")
    content = bytearray((store.path / file).read_bytes())
    content[store.stack.tables["word_embeddings"].offset + 5 if file == TABLES_FILE else -3] ^= 1
    (store.path / file).write_bytes(content)
    with pytest.raises(StoreError, match=sentence):
        full_model(ShardStore.open(store.path))
