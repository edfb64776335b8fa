"""Importing sti_hf changes nothing for models that are not asked to run from a store."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
)

import sti_hf
from sti_hf.integrations.from_pretrained import install
from tests.integrations.checkpoints import STOCK
from tests.models import tiny_inputs, tiny_model

INPUTS = tiny_inputs(tiny_model(BertModel))
STOCK_FUNCTION: Any = PreTrainedModel.from_pretrained.__func__.__wrapped__  # type: ignore[attr-defined]


def weights_of(path: Path) -> dict[str, torch.Tensor]:
    return BertForSequenceClassification.from_pretrained(path).state_dict()


CALLS = {
    "by position": lambda path: BertModel.from_pretrained(path),
    "as text": lambda path: BertModel.from_pretrained(str(path)),
    "by name": lambda path: BertModel.from_pretrained(pretrained_model_name_or_path=path),
    "arguments of the class": lambda path: BertModel.from_pretrained(path, False),
    "arguments of the class by name": lambda path: BertModel.from_pretrained(
        pretrained_model_name_or_path=path, add_pooling_layer=False
    ),
    "config": lambda path: BertModel.from_pretrained(path, config=BertConfig.from_pretrained(path)),
    "config by path": lambda path: BertModel.from_pretrained(pretrained_model_name_or_path=path, config=str(path)),
    "config and state_dict": lambda path: BertForSequenceClassification.from_pretrained(
        None, config=BertConfig.from_pretrained(path), state_dict=weights_of(path)
    ),
    "all by name": lambda path: BertForSequenceClassification.from_pretrained(
        pretrained_model_name_or_path=None, config=BertConfig.from_pretrained(path), state_dict=weights_of(path)
    ),
    "options": lambda path: BertModel.from_pretrained(
        path, cache_dir=None, revision="main", use_safetensors=True, dtype=torch.bfloat16, output_hidden_states=True
    ),
    "Auto": lambda path: AutoModel.from_pretrained(pretrained_model_name_or_path=path),
    "Auto with a head": lambda path: AutoModelForSequenceClassification.from_pretrained(path),
    "subfolder": lambda path: BertModel.from_pretrained(path.parent, subfolder=path.name),
    "loading info": lambda path: BertModel.from_pretrained(path, output_loading_info=True)[0],
}


@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS.keys())
def test_every_form_of_the_call(call: Any, classifier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = call(classifier)
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(STOCK_FUNCTION))
    stock = call(classifier)
    assert type(model) is type(stock)
    assert not hasattr(model, "sti")
    assert model.config.to_dict() == stock.config.to_dict()
    expected = stock.state_dict()
    assert model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize(
    "call",
    [
        lambda: BertModel.from_pretrained(),
        lambda: BertModel.from_pretrained(None),
        lambda: BertModel.from_pretrained("/nowhere/at/all"),
        lambda: BertModel.from_pretrained("a", pretrained_model_name_or_path="b"),
        lambda: BertModel.from_pretrained("a", config=BertConfig(), state_dict={}),
    ],
)
def test_mistakes_are_told_as_before(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Exception) as ours:
        call()
    monkeypatch.setattr(PreTrainedModel, "from_pretrained", classmethod(STOCK_FUNCTION))
    with pytest.raises(type(ours.value)) as stock:
        call()
    assert str(ours.value) == str(stock.value)


def test_none_for_a_configuration_is_none(classifier: Path) -> None:
    for model_class in (BertModel, AutoModel):
        assert not hasattr(model_class.from_pretrained(classifier, sti_config=None), "sti")


def test_a_model_can_be_trained(classifier: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    model.train()
    model(**INPUTS, labels=torch.tensor([0, 1, 1])).loss.backward()


def test_a_family_that_is_not_supported(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=8, bos_token_id=1, eos_token_id=1)
    GPT2Model(config).save_pretrained(tmp_path)
    assert type(AutoModel.from_pretrained(pretrained_model_name_or_path=tmp_path)) is GPT2Model


def test_signature_and_documentation_stay() -> None:
    ours = PreTrainedModel.from_pretrained
    stock = classmethod(STOCK_FUNCTION).__get__(None, PreTrainedModel)
    assert inspect.signature(ours) == inspect.signature(stock)
    assert (ours.__doc__, ours.__name__, ours.__qualname__) == (stock.__doc__, stock.__name__, stock.__qualname__)


def test_importing_teaches_from_pretrained_once() -> None:
    before = PreTrainedModel.from_pretrained.__func__  # type: ignore[attr-defined]
    install()
    sti_hf._install()
    assert PreTrainedModel.from_pretrained.__func__ is before  # type: ignore[attr-defined]


class Renaming(BertModel):
    """A class with a `from_pretrained` of its own."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *args: Any, **kwargs: Any) -> Any:
        """Remembers where it comes from."""
        model = super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        model.source = pretrained_model_name_or_path
        return model


def test_a_class_that_overrides_from_pretrained(classifier: Path) -> None:
    stock = Renaming.from_pretrained(classifier)
    model = Renaming.from_pretrained(classifier, sti_config=STOCK)
    assert (type(model), model.source) == (type(stock), stock.source)
    assert not hasattr(stock, "sti")
    assert torch.allclose(model(**INPUTS)[0], stock(**INPUTS)[0], atol=1e-5)
    model.sti.close()


def test_sti_config_by_name_with_every_form(classifier: Path, classifier_store: Path) -> None:
    for source in (classifier, classifier_store):
        model = BertModel.from_pretrained(pretrained_model_name_or_path=source, sti_config=STOCK)
        assert model.sti.plan.strategy == "preload"
        model.sti.close()
