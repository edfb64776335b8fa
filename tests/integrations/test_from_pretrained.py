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
    AutoConfig,
    AutoModel,
    AutoModelForMaskedLM,
    AutoModelForSequenceClassification,
    AutoModelForTokenClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    GPT2Config,
    GPT2Model,
    PreTrainedModel,
    RobertaForMaskedLM,
)
from transformers.utils import logging

import sti_hf
from sti_hf import STIConfig, StoreError, shard_checkpoint
from sti_hf.integrations.checkpoint import cache_home, resolve_store
from sti_hf.integrations.from_pretrained import install
from sti_hf.native import StreamError
from sti_hf.shards.store import RESIDENT_FILE, TABLES_FILE
from tests.integrations.checkpoints import STOCK, checkpoint, difference, save_checkpoint, use_known_device
from tests.models import TASK_HEADS, tiny_inputs, tiny_model

HEADS = [head for heads in TASK_HEADS.values() for head in heads]
OWN_CODE = ("bert", "distilbert", "electra", "mpnet", "roberta")
WITH_DECODER = ("MaskedLM", "CausalLM", "LMHeadModel", "BertForPreTraining")
DECODERS = [head for name in OWN_CODE for head in TASK_HEADS[name] if head.__name__.endswith(WITH_DECODER)]
AUTO_CLASSES = [getattr(transformers, name) for name in dir(transformers) if name.startswith("AutoModel")]
INPUTS = tiny_inputs(tiny_model(BertModel))


@pytest.fixture(autouse=True)
def _known_device(monkeypatch: pytest.MonkeyPatch) -> None:
    use_known_device(monkeypatch)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of a sequence classifier."""
    return checkpoint(BertForSequenceClassification, tmp_path_factory.mktemp("checkpoints") / "classifier")


@pytest.fixture(scope="module")
def store(classifier: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of that classifier."""
    return shard_checkpoint(classifier, tmp_path_factory.mktemp("stores") / "classifier", quantizer="lloyd").path


def auto_class(model_class: type[PreTrainedModel]) -> Any:
    """The Auto class that gives models of this class."""
    for auto in AUTO_CLASSES:
        if auto._model_mapping.get(model_class.config_class, None) is model_class:
            return auto
    raise AssertionError(f"no Auto class gives {model_class.__name__}")


def outputs(model: Any, inputs: dict[str, torch.Tensor] = INPUTS, **options: Any) -> Any:
    with torch.no_grad():
        return model(**inputs, **options)


def check_like_stock(model: Any, stock: PreTrainedModel, **options: Any) -> None:
    inputs = tiny_inputs(stock)
    assert type(model) is type(stock)
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


def test_importing_teaches_from_pretrained_once() -> None:
    before = PreTrainedModel.from_pretrained.__func__
    install()
    assert PreTrainedModel.from_pretrained.__func__ is before
    assert before.__doc__ == before.__wrapped__.__doc__


def test_other_loading_is_untouched(classifier: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier)
    assert type(model) is BertForSequenceClassification
    assert not hasattr(model, "sti")
    model.train()
    model(**INPUTS, labels=torch.tensor([0, 1, 1])).loss.backward()


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
def test_every_way_to_ask(classifier: Path, store: Path, arguments: dict[str, Any]) -> None:
    stock = BertForSequenceClassification.from_pretrained(classifier)
    for source in (classifier, str(classifier), store, str(store)):
        model = AutoModelForSequenceClassification.from_pretrained(source, **arguments)
        assert model.sti.plan.strategy == "preload"
        assert model.config.name_or_path == str(source)
        check_like_stock(model, stock)


def test_a_store_loads_with_its_own_defaults(store: Path, tmp_path: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(store)
    assert model.sti.plan.strategy == "sti"
    assert model.sti.config.target_latency == STIConfig().target_latency
    model.sti.close()
    mine = shutil.copytree(store, tmp_path / "mine")
    content = json.loads((mine / "config.json").read_text())
    content["quantization_config"] |= {"target_latency": "70ms", "preload_budget": "20KB"}
    (mine / "config.json").write_text(json.dumps(content))
    model = BertForSequenceClassification.from_pretrained(mine)
    assert (model.sti.plan.target_latency, model.sti.plan.preload_budget) == (0.07, 20_000)
    model.sti.close()


def test_the_encoder_of_a_classifier(classifier: Path, store: Path) -> None:
    stock = BertModel.from_pretrained(classifier)
    for source in (classifier, store):
        check_like_stock(AutoModel.from_pretrained(source, sti_config=STOCK), stock)


def test_the_encoder_of_a_language_model_is_planned_without_the_head(tmp_path: Path) -> None:
    checkpoint(RobertaForMaskedLM, tmp_path, vocab_size=20_000)
    encoder = AutoModel.from_pretrained(tmp_path, sti_config=STOCK)
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


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_attention_implementation(classifier: Path, attention: str) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(
        classifier, sti_config=STOCK, attn_implementation=attention
    )
    assert model.config._attn_implementation == attention
    check_like_stock(model, BertForSequenceClassification.from_pretrained(classifier))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, "bfloat16", "auto", torch.float32])
def test_dtype_is_that_of_the_stock_model(classifier: Path, dtype: Any) -> None:
    stock = AutoModelForSequenceClassification.from_pretrained(classifier, dtype=dtype)
    model = AutoModelForSequenceClassification.from_pretrained(classifier, sti_config=STOCK, dtype=dtype)
    assert model.dtype == stock.dtype
    got, expected = outputs(model).logits, outputs(stock).logits
    assert got.dtype == expected.dtype
    # 16 bits round each of the steps between the matrices, in either model.
    assert torch.allclose(got.float(), expected.float(), atol=1e-5 if stock.dtype == torch.float32 else 0.05)
    model.sti.close()


def test_a_model_can_change_its_dtype(classifier: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier, sti_config=STOCK)
    expected = outputs(model).logits
    model.to(torch.bfloat16)
    model.sti.replan(preload_budget=0)
    got = outputs(model, output_hidden_states=True)
    assert {state.dtype for state in got.hidden_states} == {torch.bfloat16}
    assert torch.allclose(got.logits.float(), expected, atol=0.05)
    model.sti.close()


def test_a_half_precision_checkpoint(tmp_path: Path) -> None:
    stock = tiny_model(BertModel).to(torch.bfloat16)
    stock.save_pretrained(tmp_path)
    model = AutoModel.from_pretrained(tmp_path, sti_config=STOCK, dtype=torch.float32)
    assert model.sti.store.index.full_dtype == "bfloat16"
    check_like_stock(model, stock.float())


def test_device_map(classifier: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier, sti_config=STOCK, device_map="cpu")
    check_like_stock(model, BertForSequenceClassification.from_pretrained(classifier))


@pytest.mark.parametrize("config", ["object", "path", "label names"])
def test_a_configuration_of_ones_own(classifier: Path, store: Path, config: str) -> None:
    own = {
        "object": BertConfig.from_pretrained(classifier),
        "path": str(classifier),
        "label names": AutoConfig.from_pretrained(classifier, id2label={0: "bad", 1: "good"}),
    }[config]
    stock = BertForSequenceClassification.from_pretrained(classifier, config=own)
    for source in (classifier, store):
        model = BertForSequenceClassification.from_pretrained(source, config=own, sti_config=STOCK)
        assert model.config.id2label == stock.config.id2label
        check_like_stock(model, stock)
    assert not hasattr(own, "quantization_config"), "the caller's configuration is left as it was"


# Heads that the checkpoint does not have.


def load_both(model_class: Any, source: Path, **options: Any) -> tuple[Any, dict[str, Any]]:
    """A model and its loading info, which must be that of stock loading."""
    _, expected = model_class.from_pretrained(source, output_loading_info=True, **options)
    model, info = model_class.from_pretrained(source, sti_config=STOCK, output_loading_info=True, **options)
    assert info == expected
    return model, info


@pytest.mark.parametrize("labels", [2, 5])
def test_a_missing_head_is_new_and_said_to_be(
    tmp_path: Path, labels: int, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint(BertModel, tmp_path)
    monkeypatch.setattr(logging.get_logger("transformers"), "propagate", True)
    model, info = load_both(AutoModelForTokenClassification, tmp_path, num_labels=labels)
    assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
    report = caplog.records[-1].getMessage()
    assert "classifier.weight" in report
    assert "MISSING" in report
    assert outputs(model).logits.shape == (*INPUTS["input_ids"].shape, labels)
    assert model.classifier.weight.std() > 0
    model.sti.close()


def test_a_missing_tied_language_model_head(tmp_path: Path) -> None:
    checkpoint(BertModel, tmp_path)
    model, info = load_both(AutoModelForMaskedLM, tmp_path)
    assert "cls.predictions.transform.dense.weight" in info["missing_keys"]
    # Its decoder is not missing: it is the word embeddings.
    stock = AutoModelForMaskedLM.from_pretrained(tmp_path)
    stock.cls.predictions.load_state_dict(
        {**stock.cls.predictions.state_dict(), **model.cls.predictions.state_dict()}, strict=True
    )
    check_like_stock(model, stock)


def test_a_missing_untied_language_model_head_is_refused(tmp_path: Path) -> None:
    checkpoint(BertModel, tmp_path)
    with pytest.raises(ValueError, match=r"no weights for the head cls\.predictions\.decoder"):
        AutoModelForMaskedLM.from_pretrained(tmp_path, sti_config=STOCK, tie_word_embeddings=False)


def test_weights_that_the_checkpoint_lacks_are_not_invented_once_and_for_all(tmp_path: Path) -> None:
    stock = tiny_model(BertForSequenceClassification)
    state = {name: tensor for name, tensor in stock.state_dict().items() if not name.startswith("classifier")}
    stock.save_pretrained(tmp_path, state_dict=state)
    for _ in range(2):
        model, info = load_both(BertForSequenceClassification, tmp_path)
        assert info["missing_keys"] == {"classifier.weight", "classifier.bias"}
        model.sti.close()


def test_a_head_of_another_size(classifier: Path) -> None:
    for options in ({}, {"sti_config": STOCK}):
        with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):
            AutoModelForSequenceClassification.from_pretrained(classifier, num_labels=5, **options)
    model, info = load_both(AutoModelForSequenceClassification, classifier, num_labels=5, ignore_mismatched_sizes=True)
    assert {name for name, *_ in info["mismatched_keys"]} == {"classifier.weight", "classifier.bias"}
    assert outputs(model).logits.shape == (3, 5)
    model.sti.close()


# What goes wrong, in one sentence.


def test_an_unsupported_family(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=1, n_head=2, n_embd=8, vocab_size=20, n_positions=8, bos_token_id=1, eos_token_id=1)
    GPT2Model(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"type 'gpt2' are not supported; supported are bert, .*mpnet") as error:
        AutoModel.from_pretrained(tmp_path, sti_config=STOCK)
    assert all(name in str(error.value) for name in TASK_HEADS)
    assert not list((cache_home() / "stores").glob(f"*{tmp_path.name}*"))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"target_latency": 0}, "target_latency must be a positive number"),
        ({"target_latency": "-5ms"}, "target_latency must be a positive number"),
        ({"preload_budget": "lots"}, "preload_budget must be a number of bytes"),
        ({"latency": "200ms"}, "STIConfig has no field 'latency'; its fields are target_latency, "),
        ({"quantizer": "none"}, "no quantizer 'none'"),
    ],
)
def test_wrong_configurations(classifier: Path, fields: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        AutoModel.from_pretrained(classifier, sti_config=fields)
    with pytest.raises(ValueError, match=sentence):
        AutoModel.from_pretrained(classifier, quantization_config={"quant_method": "sti", **fields})


def test_an_sti_config_of_another_type(classifier: Path) -> None:
    with pytest.raises(TypeError, match="an STIConfig or a dictionary of its fields, not '200ms'"):
        AutoModel.from_pretrained(classifier, sti_config="200ms")


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"no folder .*nowhere"):
        BertModel.from_pretrained(tmp_path / "nowhere", sti_config=STOCK)


def test_without_full_weights_32_bits_are_refused(classifier: Path, tmp_path: Path) -> None:
    store = shard_checkpoint(classifier, tmp_path / "store", quantizer="lloyd", full=False)
    with pytest.raises(ValueError, match="without full weights"):
        AutoModel.from_pretrained(store.path, sti_config=STOCK)
    AutoModel.from_pretrained(store.path).sti.close()


def test_training_and_devices(classifier: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier, sti_config=STOCK)
    model.train()
    with pytest.raises(RuntimeError, match=r"for inference only: call model\.eval\(\)"):
        model(**INPUTS)
    model.eval()
    loss = model(**INPUTS, labels=torch.tensor([0, 1, 1])).loss
    with pytest.raises(RuntimeError, match="does not require grad"):
        loss.backward()
    assert not [parameter for parameter in model.parameters() if parameter.requires_grad]
    if not torch.cuda.is_available():
        with pytest.raises((AssertionError, RuntimeError), match=r"^[^\n]+$"):
            model.to("cuda")
        outputs(model)
    model.sti.close()


def test_saving_is_refused(
    classifier: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier, sti_config=STOCK)
    with pytest.raises(ValueError, match="not serializable"):
        model.save_pretrained(tmp_path / "saved")
    assert f"copy {model.sti.store.path}" in caplog.text
    assert not (tmp_path / "saved").exists()
    model.sti.close()


def test_a_closed_session(classifier: Path) -> None:
    model = AutoModelForSequenceClassification.from_pretrained(classifier, sti_config=STOCK)
    model.sti.close()
    with pytest.raises(RuntimeError, match="session is closed; load the model again"):
        model(**INPUTS)


def test_a_store_without_sti_hf_says_what_is_missing(store: Path) -> None:
    stock = PreTrainedModel.from_pretrained.__func__.__wrapped__
    with pytest.raises(ValueError, match="This model is a store of sti_hf"):
        stock(BertModel, store)


@pytest.mark.parametrize("name", ["sti.json", "config.json", RESIDENT_FILE, TABLES_FILE, "shards"])
@pytest.mark.parametrize("harm", ["missing", "cut short"])
def test_a_store_that_is_not_whole(store: Path, tmp_path: Path, name: str, harm: str) -> None:
    broken = shutil.copytree(store, tmp_path / "broken")
    (file,) = broken.glob(f"{name}*")
    if harm == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-2])
    if (name, harm) == ("sti.json", "missing"):  # then it is a checkpoint, and not a whole one
        with pytest.raises((ValueError, OSError)):
            AutoModel.from_pretrained(broken, sti_config=STOCK)
        return
    with pytest.raises((ValueError, OSError)) as error:
        AutoModel.from_pretrained(broken)
    assert file.name in str(error.value)


def flip(path: Path, offset: int) -> None:
    content = bytearray(path.read_bytes())
    content[offset] ^= 0x10
    path.write_bytes(content)


@pytest.mark.parametrize("offset", [0, 20, 200, -1])
def test_a_flipped_bit_in_the_resident_weights(store: Path, tmp_path: Path, offset: int) -> None:
    broken = shutil.copytree(store, tmp_path / "broken")
    flip(broken / RESIDENT_FILE, offset)
    with pytest.raises(StoreError, match=rf"{RESIDENT_FILE} is damaged.*sti verify"):
        BertForSequenceClassification.from_pretrained(broken, sti_config=STOCK)


def test_a_flipped_bit_in_a_shard(store: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(store, tmp_path / "broken")
    layout = sti_hf.ShardStore.open(store).layouts[2]
    flip(next(broken.glob("shards*")), int(layout.piece_offset[3, 1]) + 5)
    config = {"strategy": "std_pipeline", "fidelity": 4, "target_latency": 1.0}
    model = BertForSequenceClassification.from_pretrained(broken, sti_config=config)
    for _ in range(2):
        with pytest.raises(StreamError, match=r"checksum"):
            model(**INPUTS)
    model.sti.close()


def test_a_flipped_bit_in_an_embedding_row(store: Path, tmp_path: Path) -> None:
    broken = shutil.copytree(store, tmp_path / "broken")
    table = sti_hf.ShardStore.open(store).index.tables["word_embeddings"]
    word = int(INPUTS["input_ids"][0, 0])
    flip(broken / TABLES_FILE, table.offset + word * table.row_bytes)
    model = BertForSequenceClassification.from_pretrained(broken, sti_config=STOCK)
    with pytest.raises(StreamError, match=r"checksum"):
        model(**INPUTS)
    model.sti.close()


def test_a_store_of_a_newer_format(store: Path, tmp_path: Path) -> None:
    newer = shutil.copytree(store, tmp_path / "newer")
    content = json.loads((newer / "sti.json").read_text())
    (newer / "sti.json").write_text(json.dumps({**content, "format_version": 99}))
    with pytest.raises(StoreError, match=r"format 99.*upgrade sti_hf"):
        AutoModel.from_pretrained(newer)


def test_a_latency_that_cannot_be_met(classifier: Path) -> None:
    config = {"target_latency": "1us"}
    with pytest.warns(UserWarning, match=r"meets the target latency"):
        model = AutoModel.from_pretrained(classifier, sti_config=config)
        assert not model.sti.plan.feasible
        outputs(model)
    model.sti.close()
    with pytest.raises(ValueError, match="meets the target latency"):
        AutoModel.from_pretrained(classifier, sti_config={**config, "strict": True})


def test_a_subfolder(tmp_path: Path) -> None:
    models = [tiny_model(BertModel, seed=seed) for seed in (1, 2)]
    for index, model in enumerate(models):
        save_checkpoint(model, tmp_path / f"part{index}")
    for index, stock in enumerate(models):
        model = AutoModel.from_pretrained(tmp_path, subfolder=f"part{index}", sti_config=STOCK)
        check_like_stock(model, stock)
    assert resolve_store(tmp_path, "lloyd", subfolder="part0").path != resolve_store(tmp_path / "part1", "lloyd").path


def test_an_importance_profile_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    use_known_device(monkeypatch)
    source = checkpoint(BertForSequenceClassification, tmp_path / "model")
    with pytest.raises(ValueError, match="no importance profile 'sst2'"):
        BertForSequenceClassification.from_pretrained(source, sti_config={"importance": "sst2", "quantizer": "gobo"})
