from __future__ import annotations

import copy

import pytest

from sti_hf import STIConfig


@pytest.mark.parametrize(
    ("value", "seconds"), [(0.2, 0.2), ("200ms", 0.2), ("0.2", 0.2), ("1.5 s", 1.5), ("250us", 0.00025), (1, 1.0)]
)
def test_latency(value: float | str, seconds: float) -> None:
    assert STIConfig(target_latency=value).target_latency == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("value", "size"), [(0, 0), (4096, 4096), ("1MB", 10**6), ("1MiB", 2**20), ("1.5 kB", 1500), ("10b", 10)]
)
def test_sizes(value: int | str, size: int) -> None:
    assert STIConfig(preload_budget=value).preload_budget == size


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"target_latency": 0}, "target_latency must be a positive number"),
        ({"target_latency": -1}, "target_latency must be a positive number"),
        ({"target_latency": "soon"}, "target_latency must be a positive number"),
        ({"target_latency": float("nan")}, "target_latency must be a positive number"),
        ({"target_latency": float("inf")}, "target_latency must be a positive number"),
        ({"target_latency": True}, "target_latency must be a positive number"),
        ({"preload_budget": "much"}, "preload_budget must be a number of bytes"),
        ({"preload_budget": -1}, "preload_budget must be a number of bytes"),
        ({"preload_budget": "1MW"}, "preload_budget must be a number of bytes"),
        ({"staging_budget": "x"}, "staging_budget must be a number of bytes"),
        ({"strategy": "magic"}, "strategy must be one of"),
        ({"strategy": "std_pipeline"}, "needs fidelity="),
        ({"strategy": "preload", "fidelity": 7}, "needs fidelity="),
        ({"fidelity": 4}, "fidelity is for the baseline strategies"),
        ({"allocator": "greedy"}, "allocator must be one of"),
        ({"compute_dtype": "int8"}, "compute_dtype must be one of"),
        ({"seq_len": 0}, "seq_len must be"),
        ({"seq_len": 1.5}, "seq_len must be"),
        ({"batch_size": 0}, "batch_size must be a number of sequences of at least 1"),
        ({"batch_size": True}, "batch_size must be"),
        ({"fixed_plan": 1}, "fixed_plan must be True or False"),
        ({"strict": "yes"}, "strict must be True or False"),
        ({"submodels": "all"}, "submodels must be one of measured, any, none"),
        ({"max_loss": -1}, "max_loss must be a number of points, 0 to 100"),
        ({"max_loss": "2"}, "max_loss must be a number of points"),
        ({"max_loss": float("nan")}, "max_loss must be a number of points"),
        ({"memory_budget": "lots"}, "memory_budget must be a number of bytes"),
        ({"refine": "yes"}, "refine must be True or False"),
        ({"refine": True, "strategy": "std_pipeline", "fidelity": 3}, "refine is for strategy 'sti'"),
        ({"quantizer": "nope"}, "no quantizer 'nope'"),
        ({"quant_method": "gptq"}, "quant_method 'sti'"),
    ],
)
def test_wrong_values_are_named(fields: dict, sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        STIConfig(**fields)


def test_a_dictionary_will_do() -> None:
    config = STIConfig.coerce({"target_latency": "200ms", "preload_budget": "2MB"})
    assert (config.target_latency, config.preload_budget) == (0.2, 2_000_000)
    assert STIConfig.coerce(config) is config
    with pytest.raises(TypeError, match="sti_config must be"):
        STIConfig.coerce("200ms")  # type: ignore[arg-type]


def test_round_trips() -> None:
    config = STIConfig(
        target_latency=0.3, preload_budget="5MB", strategy="preload", fidelity=4, memory_budget="1GB", batch_size=8
    )
    assert (config.memory_budget, config.batch_size, config.fixed_plan) == (10**9, 8, False)
    assert (STIConfig().submodels, STIConfig().max_loss, STIConfig().memory_budget) == ("measured", 2.0, None)
    assert STIConfig.from_dict(config.to_dict()).to_dict() == config.to_dict()
    assert copy.deepcopy(config).to_dict() == config.to_dict()
    assert config.replaced(target_latency="1s").target_latency == 1.0
