"""Under `EmptyParameters` modules have no weights; all other tensors are what torch makes them with that dtype."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from sti_hf.integrations.empty_parameters import EmptyParameters

FACTORIES: dict[str, Callable[[], Tensor]] = {
    "zeros": lambda: torch.zeros(3),
    "zeros of a dtype": lambda: torch.zeros(3, dtype=torch.long),
    "ones": lambda: torch.ones(2, 2),
    "eye": lambda: torch.eye(2),
    "linspace": lambda: torch.linspace(0, 1, 4),
    "logspace": lambda: torch.logspace(0, 1, 4),
    "hann_window": lambda: torch.hann_window(4),
    "scalar_tensor": lambda: torch.scalar_tensor(2.5),
    "arange of integers": lambda: torch.arange(5),
    "arange of floats": lambda: torch.arange(0.0, 1.0, 0.25),
    "arange by name": lambda: torch.arange(start=0, end=1.0, step=0.5),
    "full of a float": lambda: torch.full((2,), 0.5),
    "full of an integer": lambda: torch.full((2,), 3),
    "full of a truth": lambda: torch.full((2,), fill_value=True),
    "tensor of floats": lambda: torch.tensor([[1.5, 2.0]]),
    "tensor by name": lambda: torch.tensor(data=[1.5]),
    "tensor of integers": lambda: torch.tensor([1, 2]),
    "tensor of float64": lambda: torch.tensor([np.float64(1.0)]),
    "tensor of an array": lambda: torch.tensor(np.ones(2)),
    "as_tensor of floats": lambda: torch.as_tensor([1.0]),
    "as_tensor of a tensor": lambda: torch.as_tensor(torch.tensor([1])),
    "as_tensor of an array": lambda: torch.as_tensor(np.ones(2, np.float32)),
    "filled": lambda: torch.zeros(3).fill_(2.0),
    "drawn by init": lambda: nn.init.constant_(torch.zeros(3), 2.0),
}


@pytest.mark.parametrize("make", FACTORIES.values(), ids=FACTORIES.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64], ids=str)
def test_tensors_are_those_of_that_default_dtype(make: Callable[[], Tensor], dtype: torch.dtype) -> None:
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        expected = make()
    finally:
        torch.set_default_dtype(before)
    with EmptyParameters(dtype):
        got = make()
    assert (got.dtype, got.device) == (expected.dtype, expected.device)
    assert torch.equal(got, expected)


@pytest.mark.parametrize("module", [lambda: nn.Linear(4, 3), lambda: nn.Embedding(5, 2, padding_idx=1)])
def test_modules_have_no_weights(module: Callable[[], nn.Module]) -> None:
    with EmptyParameters(torch.bfloat16):
        made = module()
    assert {(parameter.device.type, parameter.dtype) for parameter in made.parameters()} == {("meta", torch.bfloat16)}
    assert {name: each.shape for name, each in made.named_parameters()} == {
        name: each.shape for name, each in module().named_parameters()
    }


def test_the_threads_default_device_and_dtype_have_no_say() -> None:
    with torch.device("meta"), EmptyParameters(torch.float32):
        assert torch.zeros(2).device.type == "cpu"
        assert torch.tensor([1.0]).device.type == "cpu"
    torch.set_default_dtype(torch.bfloat16)
    try:
        with EmptyParameters(torch.float32):
            assert torch.zeros(2).dtype == torch.float32
    finally:
        torch.set_default_dtype(torch.float32)


def test_other_threads_and_what_follows_see_nothing() -> None:
    seen = []
    with EmptyParameters(torch.bfloat16):
        thread = threading.Thread(target=lambda: seen.append(nn.Linear(4, 4).weight))
        thread.start()
        thread.join()
    seen.append(nn.Linear(4, 4).weight)
    assert [(weight.device.type, weight.dtype) for weight in seen] == [("cpu", torch.float32)] * 2
    assert all(weight.std() > 0 for weight in seen)
