"""Models are loaded in several threads at once, beside stock loads and plain modules; nothing global is changed."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils import _device
from transformers import BertForSequenceClassification, BertModel, PreTrainedModel

from tests.integrations.checkpoints import STOCK
from tests.models import tiny_inputs, tiny_model

LOADS = int(os.environ.get("STI_TEST_LOADS", "100"))
"""Of each thread; `STI_TEST_LOADS=1000` tries harder."""
INPUTS = tiny_inputs(tiny_model(BertModel))


@pytest.fixture(autouse=True)
def _impatient_threads() -> Iterator[None]:
    """Threads take turns a hundred times as often."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(5e-5)
    yield
    sys.setswitchinterval(before)


def globals_of_torch() -> dict[str, Any]:
    """What loaders are known to replace."""
    initializers = {name: getattr(nn.init, name) for name in dir(nn.init) if name.endswith("_")}
    return {
        **initializers,
        "register_parameter": nn.Module.register_parameter,
        "register_buffer": nn.Module.register_buffer,
        "linspace": torch.linspace,
        "tie_weights": PreTrainedModel.tie_weights,
        "init_weights": PreTrainedModel.init_weights,
        "dtype": torch.get_default_dtype(),
        "device": torch.get_default_device(),
        "current device": _device.CURRENT_DEVICE,
    }


def together(*works: Callable[[], None]) -> None:
    """Does each work `LOADS` times, each in its own thread; raises what the first raises."""
    errors: list[BaseException] = []
    start = threading.Barrier(len(works))

    def repeat(work: Callable[[], None]) -> None:
        start.wait()
        try:
            for _ in range(LOADS):
                if errors:
                    return
                work()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=repeat, args=(work,)) for work in works]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]


def loading(source: Path, expected: torch.Tensor) -> Callable[[], None]:
    def load() -> None:
        model = BertForSequenceClassification.from_pretrained(source, sti_config=STOCK)
        tensors = [*model.parameters(), *model.buffers()]
        assert {tensor.device.type for tensor in tensors} == {"cpu"}
        assert {tensor.dtype for tensor in model.parameters()} == {torch.float32}
        with torch.no_grad():
            assert torch.allclose(model(**INPUTS).logits, expected, atol=1e-5)
        model.sti.close()

    return load


def plain_modules() -> None:
    linear = nn.Linear(4, 4)
    assert linear.weight.device.type == "cpu"
    assert linear.weight.dtype == torch.float32
    assert linear.weight.requires_grad
    assert linear.weight.std() > 0
    assert nn.init.normal_(torch.zeros(100)).std() > 0
    assert torch.zeros(2).device.type == "cpu"


def stock_loading(source: Path, expected: torch.Tensor) -> Callable[[], None]:
    def load() -> None:
        model = BertForSequenceClassification.from_pretrained(source)
        with torch.no_grad():
            assert torch.equal(model(**INPUTS).logits, expected)

    return load


@pytest.fixture
def expected(classifier: Path) -> torch.Tensor:
    with torch.no_grad():
        return BertForSequenceClassification.from_pretrained(classifier)(**INPUTS).logits


def test_two_loads_and_plain_modules(classifier_store: Path, expected: torch.Tensor) -> None:
    before = globals_of_torch()
    load = loading(classifier_store, expected)
    together(load, load, plain_modules)
    assert globals_of_torch() == before


def test_a_load_beside_stock_loads(classifier: Path, classifier_store: Path, expected: torch.Tensor) -> None:
    before = globals_of_torch()
    together(loading(classifier_store, expected), stock_loading(classifier, expected))
    assert globals_of_torch() == before


def test_a_load_beside_what_patches_torch(classifier_store: Path, expected: torch.Tensor) -> None:
    from accelerate import init_empty_weights
    from transformers.initialization import no_init_weights, no_tie_weights

    def patching() -> None:
        with no_init_weights(), no_tie_weights(), init_empty_weights():
            nn.Linear(4, 4)

    before = globals_of_torch()
    together(loading(classifier_store, expected), patching)
    assert globals_of_torch() == before


def test_a_checkpoint_is_sharded_once_for_two_threads(tmp_path: Path) -> None:
    tiny_model(BertForSequenceClassification).save_pretrained(tmp_path)
    before, models = globals_of_torch(), []

    def load() -> None:
        models.append(BertForSequenceClassification.from_pretrained(tmp_path, sti_config=STOCK))

    threads = [threading.Thread(target=load) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({model.sti.store.path for model in models}) == 1
    assert len(models) == 4
    assert globals_of_torch() == before
    for model in models:
        model.sti.close()
