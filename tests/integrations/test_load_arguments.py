"""Every argument of the stock `from_pretrained`: the same with `sti_config`, or refused in one sentence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BitsAndBytesConfig,
    PreTrainedModel,
)

from sti_hf import STIConfig
from sti_hf.errors import ConfigurationError, STIError, UnsupportedUseError
from sti_hf.integrations.store_cache import resolve_store
from tests.integrations.checkpoints import STOCK, difference, save_checkpoint
from tests.models import tiny_inputs, tiny_model

INPUTS = tiny_inputs(tiny_model(BertModel))


def outputs(model: Any, inputs: dict[str, torch.Tensor] = INPUTS, **options: Any) -> Any:
    with torch.no_grad():
        return model(**inputs, **options)


def check_like_stock(model: Any, stock: PreTrainedModel) -> None:
    inputs = tiny_inputs(stock)
    assert type(model) is type(stock)
    assert difference(outputs(model, inputs), outputs(stock, inputs)) < 1e-5
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


@pytest.mark.parametrize("config", ["object", "path", "label names"])
def test_a_configuration_of_ones_own(classifier: Path, classifier_store: Path, config: str) -> None:
    own = {
        "object": BertConfig.from_pretrained(classifier),
        "path": str(classifier),
        "label names": AutoConfig.from_pretrained(classifier, id2label={0: "bad", 1: "good"}),
    }[config]
    stock = BertForSequenceClassification.from_pretrained(classifier, config=own)
    for source in (classifier, classifier_store):
        model = BertForSequenceClassification.from_pretrained(source, config=own, sti_config=STOCK)
        assert model.config.id2label == stock.config.id2label
        check_like_stock(model, stock)
    assert not hasattr(own, "quantization_config"), "the caller's configuration is left as it was"


def test_a_subfolder(tmp_path: Path) -> None:
    models = [tiny_model(BertModel, seed=seed) for seed in (1, 2)]
    for index, model in enumerate(models):
        save_checkpoint(model, tmp_path / f"part{index}")
    for index, stock in enumerate(models):
        model = AutoModel.from_pretrained(tmp_path, subfolder=f"part{index}", sti_config=STOCK)
        check_like_stock(model, stock)
    assert resolve_store(tmp_path, "lloyd", subfolder="part0").path != resolve_store(tmp_path / "part1", "lloyd").path


@pytest.mark.parametrize(
    "device_map", [None, "cpu", torch.device("cpu"), {"": "cpu"}, {"": torch.device("cpu")}, "auto", "sequential"]
)
def test_places_on_the_cpu(classifier_store: Path, device_map: Any) -> None:
    if device_map in ("auto", "sequential") and torch.accelerator.is_available():
        pytest.skip("there is an accelerator, which Transformers would choose")
    model = BertForSequenceClassification.from_pretrained(classifier_store, sti_config=STOCK, device_map=device_map)
    assert {parameter.device.type for parameter in model.parameters()} == {"cpu"}
    model.sti.close()


def test_another_default_device_is_refused(classifier_store: Path) -> None:
    for device_map in (None, "cpu"):
        with (
            torch.device("meta"),
            pytest.raises(UnsupportedUseError, match="on the CPU, and torch's default device is meta"),
        ):
            BertModel.from_pretrained(classifier_store, sti_config=STOCK, device_map=device_map)


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (
            {"state_dict": {"a": torch.zeros(1)}},
            "state_dict= cannot be used with sti_config: the weights are",
        ),
        ({"device_map": "cuda"}, "on the CPU, and device_map='cuda' asks for another place"),
        ({"device_map": 0}, "device_map=0 asks for another place"),
        ({"device_map": {"bert": "cpu", "classifier": "disk"}}, "load it with device_map='cpu'"),
        (
            {"attn_implementation": "flash_attention_2"},
            "'flash_attention_2' does not run from a store: use",
        ),
        ({"attn_implementation": "flex_attention"}, "use one of sdpa, eager"),
        ({"dtype": "int8"}, "dtype must be 'auto' or a floating dtype of torch, such as float32, not 'int8'"),
        ({"dtype": "float99"}, "dtype must be 'auto' or a floating dtype"),
        ({"torch_dtype": torch.int64}, "dtype must be 'auto' or a floating dtype"),
        ({"dtype": {"": "float32"}}, "dtype must be 'auto' or a floating dtype"),
        ({"key_mapping": {"^a": "b"}}, "key_mapping= cannot be used with sti_config"),
        ({"tp_plan": "auto"}, "tp_plan= cannot be used with sti_config"),
        ({"gguf_file": "a.gguf"}, "gguf_file= cannot be used with sti_config"),
        ({"adapter_name": "mine"}, "adapter_name= cannot be used with sti_config"),
        ({"adapter_kwargs": {"_adapter_model_path": "x"}}, "An adapter cannot be used with sti_config"),
        ({"use_kernels": True}, "use_kernels= cannot be used with sti_config"),
        ({"fusion_config": {"patch_embeddings": True}}, "fusion_config= cannot be used with sti_config"),
        ({"quantization_config": BitsAndBytesConfig(load_in_8bit=True)}, "not both: leave one of the two out"),
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, "not both: leave one of the two out"),
        ({"quantization_config": STIConfig()}, "both configure sti_hf: give one of them"),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_what_is_refused(classifier_store: Path, arguments: dict[str, Any], sentence: str) -> None:
    with pytest.raises((ConfigurationError, UnsupportedUseError)) as error:
        BertForSequenceClassification.from_pretrained(classifier_store, sti_config=STOCK, **arguments)
    assert sentence in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    "arguments",
    [
        {"low_cpu_mem_usage": True},
        {"use_safetensors": True},
        {"variant": None, "revision": "main", "token": None, "cache_dir": None, "force_download": False},
        {"local_files_only": True, "proxies": None, "subfolder": ""},
        {"trust_remote_code": True},
        {"weights_only": True, "disable_mmap": None},
        {"ignore_mismatched_sizes": True},
        {"key_mapping": {}},
        {"state_dict": None, "tp_plan": None, "generation_config": None, "quantization_config": None},
        {"offload_folder": "there", "max_memory": {"cpu": "1GB"}},
    ],
    ids=str,
)
def test_what_changes_nothing(classifier: Path, classifier_store: Path, arguments: dict[str, Any]) -> None:
    stock = BertForSequenceClassification.from_pretrained(classifier)
    for source in (classifier, classifier_store):
        model = BertForSequenceClassification.from_pretrained(source, sti_config=STOCK, **arguments)
        check_like_stock(model, stock)


def test_fields_of_the_configuration_and_arguments_of_the_class(classifier: Path, classifier_store: Path) -> None:
    for source in (classifier, classifier_store):
        model = BertModel.from_pretrained(
            source,
            sti_config=STOCK,
            output_hidden_states=True,
            add_pooling_layer=False,
            id2label={0: "bad", 1: "good"},
        )
        assert model.pooler is None
        assert model.config.id2label == {0: "bad", 1: "good"}
        assert len(outputs(model).hidden_states) == 4
        model.sti.close()
        positional = BertModel.from_pretrained(classifier_store, False, sti_config=STOCK)
        assert positional.pooler is None
        positional.sti.close()
        with pytest.raises(TypeError, match="unexpected keyword argument 'colour'"):
            BertModel.from_pretrained(source, sti_config=STOCK, colour="blue")


def test_loading_info(classifier: Path, classifier_store: Path) -> None:
    for source in (classifier, classifier_store):
        for model_class in (BertForSequenceClassification, AutoModelForSequenceClassification):
            model, info = model_class.from_pretrained(source, sti_config=STOCK, output_loading_info=True)
            _, expected = model_class.from_pretrained(classifier, output_loading_info=True)
            assert info == expected
            model.sti.close()


def test_without_a_source() -> None:
    for source in (None, 3, {"a": 1}):
        with pytest.raises(STIError, match="sti_config needs the folder or Hub id"):
            BertModel.from_pretrained(source, sti_config=STOCK)


def test_a_store_in_a_subfolder(classifier: Path, classifier_store: Path) -> None:
    stock = BertForSequenceClassification.from_pretrained(classifier)
    folder, name = classifier_store.parent, classifier_store.name
    for arguments in ({}, {"sti_config": STOCK}):
        for model_class in (BertForSequenceClassification, AutoModelForSequenceClassification):
            model = model_class.from_pretrained(folder, subfolder=name, **arguments)
            assert model.sti.store.path == classifier_store
            if arguments:
                check_like_stock(model, stock)
            model.sti.close()
