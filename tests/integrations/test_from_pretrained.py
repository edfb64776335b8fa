"""What a user gets from `from_pretrained`, held against the stock model of the same checkpoint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from transformers import (
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    BertForSequenceClassification,
    BertModel,
    DistilBertForSequenceClassification,
    PreTrainedModel,
    RobertaForMaskedLM,
)

from sti_hf import STIConfig
from tests.integrations.checkpoints import STOCK, checkpoint, difference
from tests.models import TASK_HEADS, tiny_inputs, tiny_model

HEADS = [head for heads in TASK_HEADS.values() for head in heads]
OWN_CODE = ("bert", "distilbert", "electra", "mpnet", "roberta")
WITH_DECODER = ("MaskedLM", "CausalLM", "LMHeadModel", "BertForPreTraining")
DECODERS = [head for name in OWN_CODE for head in TASK_HEADS[name] if head.__name__.endswith(WITH_DECODER)]
AUTO_CLASSES = [getattr(transformers, name) for name in dir(transformers) if name.startswith("AutoModel")]
INPUTS = tiny_inputs(tiny_model(BertModel))


def auto_class(model_class: type[PreTrainedModel]) -> Any:
    """The Auto class that gives models of this class, or where there is none, the class."""
    for auto in AUTO_CLASSES:
        if auto._model_mapping.get(model_class.config_class, None) is model_class:
            return auto
    assert model_class.config_class.model_type not in OWN_CODE
    return model_class


def outputs(model: Any, inputs: dict[str, torch.Tensor] = INPUTS, **options: Any) -> Any:
    with torch.no_grad():
        return model(**inputs, **options)


def check_like_stock(model: Any, stock: PreTrainedModel, **options: Any) -> None:
    inputs = tiny_inputs(stock)
    assert isinstance(model, type(stock))
    assert not model.training
    assert difference(outputs(model, inputs, **options), outputs(stock, inputs, **options)) < 1e-5
    model.sti.close()


# The same model as the stock one.


@pytest.mark.parametrize("model_class", HEADS, ids=lambda head: head.__name__)
def test_every_head_from_its_checkpoint_and_from_its_store(model_class: Any, tmp_path: Path) -> None:
    stock = tiny_model(model_class)
    stock.save_pretrained(tmp_path / "checkpoint")
    model = model_class.from_pretrained(tmp_path / "checkpoint", sti_config=STOCK)
    store = model.sti.store.path
    check_like_stock(model, stock)
    check_like_stock(auto_class(model_class).from_pretrained(store, sti_config=STOCK), stock)


@pytest.mark.parametrize("model_class", DECODERS, ids=lambda head: head.__name__)
def test_a_head_with_its_own_weights(model_class: Any, tmp_path: Path) -> None:
    stock = tiny_model(model_class, tie_word_embeddings=False)
    embeddings, decoder = stock.get_input_embeddings(), stock.get_output_embeddings()
    assert not torch.equal(embeddings.weight, decoder.weight)
    stock.save_pretrained(tmp_path)
    check_like_stock(model_class.from_pretrained(tmp_path, sti_config=STOCK), stock)


def test_position_embeddings_that_transformers_computes(tmp_path: Path) -> None:
    tiny_model(DistilBertForSequenceClassification, sinusoidal_pos_embds=True).save_pretrained(tmp_path)
    stock = DistilBertForSequenceClassification.from_pretrained(tmp_path)
    check_like_stock(DistilBertForSequenceClassification.from_pretrained(tmp_path, sti_config=STOCK), stock)


@pytest.mark.parametrize(
    "arguments",
    [
        {"sti_config": STOCK},
        {"sti_config": STIConfig(**STOCK)},
        {"quantization_config": STIConfig(**STOCK)},
        {"quantization_config": {"quant_method": "sti", **STOCK}},
    ],
    ids=["dict", "STIConfig", "quantization_config", "quantization_config dict"],
)
def test_every_way_to_ask(classifier: Path, classifier_store: Path, arguments: dict[str, Any]) -> None:
    stock = BertForSequenceClassification.from_pretrained(classifier)
    for source in (classifier, str(classifier), classifier_store, str(classifier_store)):
        model = AutoModelForSequenceClassification.from_pretrained(source, **arguments)
        assert model.sti.plan.strategy == "preload"
        assert model.config.name_or_path == str(source)
        check_like_stock(model, stock)


def test_a_store_loads_with_its_own_defaults(classifier_store: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier_store)
    assert model.sti.plan.strategy == "sti"
    assert model.sti.config.target_latency == STIConfig().target_latency
    model.sti.close()
    mine = shutil.copytree(classifier_store, tmp_path / "mine")
    content = json.loads((mine / "config.json").read_text())
    content["quantization_config"] |= {"target_latency": "70ms", "preload_budget": "20KB"}
    (mine / "config.json").write_text(json.dumps(content))
    model = BertForSequenceClassification.from_pretrained(mine)
    assert (model.sti.plan.target_latency, model.sti.plan.preload_budget) == (0.07, 20_000)
    model.sti.close()


def test_the_encoder_of_a_classifier(classifier: Path, classifier_store: Path) -> None:
    stock = BertModel.from_pretrained(classifier)
    for source in (classifier, classifier_store):
        check_like_stock(AutoModel.from_pretrained(source, sti_config=STOCK), stock)


def test_the_encoder_of_a_language_model_is_planned_without_the_head(tmp_path: Path) -> None:
    checkpoint(RobertaForMaskedLM, tmp_path, vocab_size=20_000)
    encoder = AutoModel.from_pretrained(tmp_path, sti_config=STOCK, add_pooling_layer=False)
    whole = AutoModelForMaskedLM.from_pretrained(tmp_path, sti_config=STOCK)
    table = 20_000 * whole.config.hidden_size * 4
    extra = whole.sti.plan.predicted_latency - encoder.sti.plan.predicted_latency
    assert extra == pytest.approx(table / 1e8, rel=0.01), "the time in which the table is read"
    for model in (encoder, whole):
        model.sti.close()


def test_options_of_the_stock_model(classifier: Path) -> None:
    for options in ({"output_hidden_states": True}, {"output_attentions": True}, {"labels": torch.tensor([0, 1, 1])}):
        stock = BertForSequenceClassification.from_pretrained(classifier, attn_implementation="eager")
        model = BertForSequenceClassification.from_pretrained(
            classifier, sti_config=STOCK, attn_implementation="eager"
        )
        got, expected = outputs(model, **options), outputs(stock, **options)
        assert difference(got, expected) < 1e-5
        for name in ("hidden_states", "attentions"):
            one, other = getattr(got, name), getattr(expected, name)
            assert (one is None) == (other is None)
            for a, b in zip(one or (), other or (), strict=True):
                assert torch.allclose(a, b, atol=1e-5)
        model.sti.close()


def test_inputs_embeds_and_tuples(classifier: Path) -> None:
    stock = BertForSequenceClassification.from_pretrained(classifier)
    model = BertForSequenceClassification.from_pretrained(classifier, sti_config=STOCK)
    embeddings = stock.get_input_embeddings()(INPUTS["input_ids"]).detach()
    inputs = {"inputs_embeds": embeddings, "attention_mask": INPUTS["attention_mask"]}
    assert difference(outputs(model, inputs), outputs(stock, inputs)) < 1e-5
    (logits,) = outputs(model, return_dict=False)
    assert torch.allclose(logits, outputs(stock, return_dict=False)[0], atol=1e-5)
    model.sti.close()
