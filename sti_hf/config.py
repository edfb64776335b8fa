"""What a user asks for: how fast, from how much memory, and how."""

from __future__ import annotations

import inspect
import math
import re
from typing import Any

from transformers.utils.quantization_config import QuantizationConfigMixin

from sti_hf.errors import ConfigurationError
from sti_hf.planning.request import ALLOCATORS, STRATEGIES, SUBMODELS
from sti_hf.shards.layout import FIDELITIES
from sti_hf.shards.quantizers import DEFAULT_QUANTIZER, check_quantizer

COMPUTE_DTYPES = ("auto", "float32", "bfloat16")
DEFAULT_SEQ_LEN = 128

_SECONDS = {"": 1.0, "s": 1.0, "ms": 1e-3, "us": 1e-6}
_BYTES = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


class STIConfig(QuantizationConfigMixin):
    """How a model is run from its shards.

    Args:
        target_latency: T, the time that a forward of `batch_size` sequences may take: seconds, or a text such as
            "200ms". A larger batch keeps the plan of its length and takes longer.
        target_token_latency: of models that write texts, the time that each token after the first may take, as
            `target_latency` (which is then the time of the prompt, to the first token). None: tokens run at the
            fidelities of their prompt, and take the time that these take.
        preload_budget: S, the size of the preload buffer: bytes, or a text such as "1MB".
        strategy: "sti", or one of the paper's baselines "load_exec", "std_pipeline", "preload" (with `fidelity`).
        fidelity: bits of all shards under a baseline strategy.
        allocator: "marginal" or "two_pass" (the paper's).
        importance: name of an importance profile in the store; None: the store's default profile if it has one;
            "default": no profile, the documented default order.
        compute_dtype: "auto" (the fastest the device profile found), "float32" or "bfloat16".
        seq_len: tokens of the plan that is made first; other lengths get theirs when they come.
        batch_size: sequences in the batch that T is meant for.
        fixed_plan: one plan, that of `seq_len`, for all lengths: the same text gets the same answer beside any other.
            Longer inputs then take longer than T.
        submodels: which parts of the model may run where T is too short for the whole. "measured": those whose
            accuracy the store's importance profile has measured, within `max_loss` points of the whole model; where
            none keeps T, the whole model runs at the lowest fidelity, with a warning. "any": all of them, the paper's
            rule; "none": the whole model alone. Stores of elastic checkpoints take "measured" as "any".
        max_loss: points, that is hundredths, of the metric that a measured submodel may lose. Of language models that
            were profiled on text the metric is full perplexity / perplexity: 2 lets it grow by 2 per cent.
        staging_budget: bound of the staging buffer (bytes or text); None: what the plan needs to keep reading.
        memory_budget: bound of preload, staging and working buffer together (bytes or text); less than
            `preload_budget` is preloaded where that leaves no room for the others. None: no bound.
        refine: keep T when the disk is busy, at the price of results that depend on it: planes above the lowest
            fidelity that come too late for T are left out of an inference, and where reading is ahead of the plan, the
            planes that are worth most beyond it are read too. `model.sti.last_run.bits` says what was executed. No
            shard runs at full fidelity, and the staging buffer holds two layers at least, unless `staging_budget`
            forbids.
        strict: raise if T cannot be met, instead of a warning.
        quantizer: the quantizer with which a checkpoint is sharded on first use.

    Raises `ValueError` with one sentence for a value that makes no sense.
    """

    def __init__(
        self,
        target_latency: float | str = 0.2,
        preload_budget: int | str = "1MB",
        strategy: str = "sti",
        fidelity: int | None = None,
        allocator: str = "marginal",
        importance: str | None = None,
        compute_dtype: str = "auto",
        seq_len: int = DEFAULT_SEQ_LEN,
        staging_budget: int | str | None = None,
        refine: bool = False,
        strict: bool = False,
        quantizer: str = DEFAULT_QUANTIZER,
        quant_method: str = "sti",
        batch_size: int = 1,
        fixed_plan: bool = False,
        submodels: str = "measured",
        max_loss: float = 2.0,
        memory_budget: int | str | None = None,
        target_token_latency: float | str | None = None,
    ) -> None:
        if quant_method != "sti":
            raise ConfigurationError(f"This is the configuration of quant_method 'sti', not {quant_method!r}.")
        self.quant_method: Any = quant_method
        self.target_latency = parse_seconds(target_latency)
        self.target_token_latency = None
        if target_token_latency is not None:
            self.target_token_latency = parse_seconds(target_token_latency, "target_token_latency")
        self.preload_budget = parse_bytes(preload_budget, "preload_budget")
        self.strategy = _one_of("strategy", strategy, STRATEGIES)
        self.fidelity = _fidelity_for(strategy, fidelity)
        self.allocator = _one_of("allocator", allocator, ALLOCATORS)
        self.importance = importance
        if importance is not None and not isinstance(importance, str):
            raise ConfigurationError(f"importance must be the name of an importance profile, not {importance!r}.")
        self.compute_dtype = _one_of("compute_dtype", compute_dtype, COMPUTE_DTYPES)
        self.seq_len = _count("seq_len", "tokens", seq_len)
        self.batch_size = _count("batch_size", "sequences", batch_size)
        self.fixed_plan = _flag("fixed_plan", fixed_plan)
        self.submodels = _one_of("submodels", submodels, SUBMODELS)
        self.max_loss = _points(max_loss)
        self.staging_budget = None if staging_budget is None else parse_bytes(staging_budget, "staging_budget")
        self.memory_budget = None if memory_budget is None else parse_bytes(memory_budget, "memory_budget")
        self.refine = _refine_for(strategy, refine)
        self.strict = _flag("strict", strict)
        check_quantizer(quantizer)
        self.quantizer = quantizer

    @classmethod
    def coerce(cls, value: STIConfig | dict[str, Any]) -> STIConfig:
        """An STIConfig from one, or from a dictionary of its fields."""
        if isinstance(value, cls):
            return value
        if not isinstance(value, dict):
            raise ConfigurationError(f"sti_config must be an STIConfig or a dictionary of its fields, not {value!r}.")
        fields = list(inspect.signature(cls).parameters)
        unknown = [name for name in value if name not in fields]
        if unknown:
            raise ConfigurationError(f"STIConfig has no field {unknown[0]!r}; its fields are {', '.join(fields)}.")
        return cls(**value)

    def replaced(self, **changes: Any) -> STIConfig:
        """A copy with some fields changed."""
        return type(self)(**{**self.to_dict(), **changes})


def parse_seconds(value: float | str, name: str = "target_latency") -> float:
    """Seconds from a number or a text such as "200ms"; raises `ValueError` unless it is positive and finite."""
    seconds = _with_unit(value, _SECONDS)
    if seconds is None or not 0 < seconds < math.inf:
        raise ConfigurationError(
            f"{name} must be a positive number of seconds or a text such as '200ms', not {value!r}."
        )
    return seconds


def parse_bytes(value: int | str, name: str) -> int:
    """Bytes from a number or a text such as "1MB" (10**6) or "1MiB" (2**20)."""
    size = _with_unit(value, _BYTES)
    if size is None or not 0 <= size < math.inf:
        raise ConfigurationError(f"{name} must be a number of bytes or a text such as '1MB', not {value!r}.")
    return int(size)


def _with_unit(value: float | str, units: dict[str, Any]) -> float | None:
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    match = re.fullmatch(r"\s*([0-9]*\.?[0-9]+(?:e[+-]?[0-9]+)?)\s*([a-z]*)\s*", str(value).lower())
    if match is None or match[2] not in units:
        return None
    return float(match[1]) * units[match[2]]


def _one_of(name: str, value: str, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ConfigurationError(f"{name} must be one of {', '.join(choices)}, not {value!r}.")
    return value


def _fidelity_for(strategy: str, fidelity: int | None) -> int | None:
    if strategy == "sti":
        if fidelity is not None:
            raise ConfigurationError(
                "fidelity is for the baseline strategies; strategy 'sti' plans the fidelity of each shard."
            )
        return None
    if fidelity not in FIDELITIES:
        choices = ", ".join(map(str, FIDELITIES))
        raise ConfigurationError(f"strategy {strategy!r} needs fidelity= one of {choices}, not {fidelity!r}.")
    return fidelity


def _count(name: str, what: str, value: int) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ConfigurationError(f"{name} must be a number of {what} of at least 1, not {value!r}.")
    return value


def _flag(name: str, value: bool) -> bool:
    if not isinstance(value, bool):
        raise ConfigurationError(f"{name} must be True or False, not {value!r}.")
    return value


def _points(value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:
        raise ConfigurationError(f"max_loss must be a number of points, 0 to 100, not {value!r}.")
    return float(value)


def _refine_for(strategy: str, refine: bool) -> bool:
    _flag("refine", refine)
    if refine and strategy != "sti":
        raise ConfigurationError("refine is for strategy 'sti'; the baseline strategies run what they plan.")
    return refine
