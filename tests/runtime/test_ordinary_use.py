"""What people do with a model of Transformers: it works as with a stock one, or is refused in one sentence."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import accelerate
import numpy as np
import pytest
import torch
from transformers import BertForSequenceClassification, Trainer, TrainingArguments

from sti_hf.errors import InputError, UnsupportedUseError
from sti_hf.shards.store import ShardStore
from tests.models import tiny_inputs, tiny_model
from tests.runtime.sessions import logits_of, plan_of, running, store_of

STOCK = tiny_model(BertForSequenceClassification, num_labels=3)
INPUTS = tiny_inputs(STOCK)
with torch.no_grad():
    EXPECTED = logits_of(STOCK(**INPUTS))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ShardStore:
    return store_of(STOCK, tmp_path_factory.mktemp("ordinary") / "store")


@pytest.fixture
def model(store: ShardStore) -> Any:
    model = running(store, plan_of(store, np.full((store.grid.layers, store.grid.slices), 32), 0.3))
    yield model
    model.sti.close()


def check(model: Any) -> None:
    assert torch.allclose(logits_of(model(**INPUTS)), EXPECTED, atol=1e-5)


class Rows(torch.utils.data.Dataset[dict[str, Any]]):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {name: value[index] for name, value in INPUTS.items()} | {"labels": index}


def trainer(model: Any, folder: Path) -> Trainer:
    arguments = TrainingArguments(str(folder), report_to=[], use_cpu=True, per_device_eval_batch_size=2, max_steps=1)
    return Trainer(model, arguments, train_dataset=Rows(), eval_dataset=Rows())


def test_trainer_evaluates_and_predicts(model: Any, tmp_path: Path) -> None:
    stock = trainer(STOCK, tmp_path / "stock")
    ours = trainer(model, tmp_path / "ours")
    assert ours.evaluate()["eval_loss"] == pytest.approx(stock.evaluate()["eval_loss"], abs=1e-5)
    assert np.allclose(ours.predict(Rows()).predictions, EXPECTED, atol=1e-5)
    check(model)


def test_training_is_refused_in_one_sentence(model: Any, tmp_path: Path) -> None:
    with pytest.raises(UnsupportedUseError, match="for inference only"):
        trainer(model, tmp_path).train()
    model.eval()
    check(model)
    model.bert.encoder.train()  # dropout in a part alone would change answers
    with pytest.raises(UnsupportedUseError, match="for inference only"):
        model(**INPUTS)
    model.eval()
    model.bert.encoder.layer[1].train()
    with pytest.raises(UnsupportedUseError, match="for inference only"):
        model(**INPUTS)
    model.eval()
    check(model)


def test_compiling_gives_the_eager_result(model: Any) -> None:
    compiled = torch.compile(model, backend="eager")
    for inputs in (INPUTS, tiny_inputs(STOCK, batch=2, tokens=23), INPUTS):
        assert torch.equal(logits_of(compiled(**inputs)), logits_of(model(**inputs)))
    check(model)


def test_tracing_and_exporting_are_refused_in_one_sentence(model: Any) -> None:
    for refuse in (
        lambda: torch.jit.trace(model, (INPUTS["input_ids"],), strict=False),
        lambda: torch.export.export(model, (INPUTS["input_ids"],)),
    ):
        with pytest.raises(UnsupportedUseError, match="cannot be traced or exported"):
            refuse()
        check(model)


def test_hooks_of_a_user_are_called_and_kept(model: Any) -> None:
    called = []
    layer = model.bert.encoder.layer[1]
    handles = [
        module.register_forward_hook(lambda module, *_: called.append(type(module).__name__))
        for module in (model, model.bert, model.bert.encoder, layer, layer.attention.self.query)
    ]
    check(model)
    assert called == ["ElasticLinear", "BertLayer", "BertEncoder", "BertModel", "BertForSequenceClassification"]
    for handle in handles:
        handle.remove()
    check(model)


def test_hooks_of_accelerate_come_and_go(model: Any) -> None:
    seen = []

    class Hook(accelerate.hooks.ModelHook):
        def pre_forward(self, module: Any, *args: Any, **kwargs: Any) -> Any:
            seen.append(type(module).__name__)
            return args, kwargs

    for module in (model, model.bert.encoder.layer[0]):
        accelerate.hooks.add_hook_to_module(module, Hook())
    check(model)
    assert seen == ["BertForSequenceClassification", "BertLayer"]
    accelerate.hooks.remove_hook_from_submodules(model)
    check(model)
    assert len(seen) == 2


def test_accelerate_prepares_dispatches_and_offloads(model: Any) -> None:
    check(accelerate.Accelerator(cpu=True).prepare(model))
    check(accelerate.dispatch_model(model, {"": "cpu"}, main_device="cpu"))
    accelerate.hooks.remove_hook_from_submodules(model)
    accelerate.cpu_offload(model, "cpu")
    with contextlib.suppress(UnsupportedUseError):
        check(model)
    accelerate.hooks.remove_hook_from_submodules(model)
    check(model)


@pytest.mark.parametrize(
    ("inputs", "sentence"),
    [
        ({"input_ids": [[5, 6, 7]]}, "must be a tensor of token ids, not list"),
        ({"input_ids": np.array([[5, 6, 7]])}, "must be a tensor of token ids, not ndarray"),
        ({"input_ids": torch.tensor([[5.0, 6.0]])}, "must be whole numbers"),
        ({"input_ids": torch.empty(0, 7, dtype=torch.long)}, "is empty"),
        ({"input_ids": torch.empty(2, 0, dtype=torch.long)}, "is empty"),
        ({"input_ids": torch.tensor([[5, 211]])}, "Token ids must be 0 to 210; these reach 5 to 211"),
        ({"input_ids": torch.full((1, 71), 5)}, "has 71 tokens, and this model takes 70"),
        ({}, "needs input_ids or inputs_embeds"),
    ],
)
def test_inputs_that_no_model_takes_are_one_sentence(model: Any, inputs: dict[str, Any], sentence: str) -> None:
    for call in (model, model.bert):
        with pytest.raises(InputError, match=sentence) as refused:
            call(**inputs)
        assert "\n" not in str(refused.value)
    check(model)


def test_gradients_of_inputs_are_refused(model: Any) -> None:
    embeddings = torch.randn(1, 5, 32, requires_grad=True)
    with pytest.raises(UnsupportedUseError, match="Gradients of inputs_embeds"):
        model(inputs_embeds=embeddings)
    with torch.no_grad():
        assert torch.allclose(
            model(inputs_embeds=embeddings).logits, STOCK(inputs_embeds=embeddings).logits, atol=1e-5
        )


def test_embeddings_are_as_the_stock_models(model: Any) -> None:
    words = model.get_input_embeddings()
    assert torch.equal(words.weight, STOCK.get_input_embeddings().weight)
    assert torch.equal(words(INPUTS["input_ids"]), STOCK.get_input_embeddings()(INPUTS["input_ids"]))
    assert model.resize_token_embeddings() is words
    assert model.resize_token_embeddings(words.num_embeddings) is words
    with pytest.raises(UnsupportedUseError, match="cannot become 300"):
        model.resize_token_embeddings(300)
    model.tie_weights()
    check(model)


def test_sizes_are_true(model: Any) -> None:
    assert model.num_parameters() == STOCK.num_parameters()
    assert model.num_parameters(exclude_embeddings=True) == STOCK.num_parameters(exclude_embeddings=True)
    assert model.num_parameters(only_trainable=True) == 0
    memory = model.sti.memory()
    assert model.get_memory_footprint() == sum(memory.values()) - memory["peak"]


def test_narrower_dtypes_are_as_stock(model: Any) -> None:
    inputs = tiny_inputs(STOCK, batch=1)
    stock = tiny_model(BertForSequenceClassification, num_labels=3).bfloat16()
    with torch.no_grad():
        expected = stock(**inputs).logits
    narrow = model.bfloat16()
    assert narrow(**inputs).logits.dtype == torch.bfloat16
    assert torch.allclose(narrow(**inputs).logits.float(), expected.float(), atol=0.15)


def test_weights_are_not_initialized_again(model: Any) -> None:
    for initialize in (model.init_weights, model.post_init, model.initialize_weights):
        initialize()
        check(model)


def test_other_weights_are_refused(model: Any) -> None:
    """They would be a mixture of these and the store's."""
    for strict in (True, False):
        with pytest.raises(UnsupportedUseError, match="shard a checkpoint that has them"):
            model.load_state_dict(STOCK.state_dict(), strict=strict)
    check(model)


def test_a_weight_that_is_in_the_store_says_so(model: Any) -> None:
    query = model.bert.encoder.layer[1].attention.self.query
    assert not hasattr(query, "weight")
    with pytest.raises(UnsupportedUseError, match="q of layer 1 is in the model's store"):
        print(query.weight)
    check(model)


def test_saving_is_refused_and_leaves_nothing(model: Any, tmp_path: Path) -> None:
    for save in (model.save_pretrained, model.push_to_hub):
        with pytest.raises(UnsupportedUseError, match=str(model.sti.store.path)):
            save(str(tmp_path / "saved"))
    assert not list(tmp_path.iterdir())


def test_hidden_states_are_those_of_the_layers_that_run(store: ShardStore) -> None:
    bits = np.full((store.grid.layers, store.grid.slices), 32)
    bits[2] = 0
    model = running(store, plan_of(store, bits))
    with torch.no_grad():
        expected = STOCK(**INPUTS, output_hidden_states=True).hidden_states
    found = model(**INPUTS, output_hidden_states=True).hidden_states
    assert len(found) == 3, "one before the layers, and one of each that runs"
    assert all(torch.allclose(one, other, atol=1e-5) for one, other in zip(found, expected))
    assert model.config.num_hidden_layers == 3
    model.sti.close()
