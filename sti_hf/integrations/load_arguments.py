"""The arguments of `from_pretrained`: what each means for a model that runs from its store, or that it is refused."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig

from sti_hf.config import STIConfig
from sti_hf.errors import ConfigurationError, UnsupportedUseError
from sti_hf.integrations.sources import HUB_ARGUMENTS

SOURCE_ARGUMENTS = (*HUB_ARGUMENTS, "variant", "use_safetensors")
"""With which the files of a checkpoint or store are found."""

ATTENTIONS = ("sdpa", "eager")
PLACING_BY_ITSELF = ("auto", "balanced", "balanced_low_0", "sequential")
"""Values of `device_map` that leave the place to Transformers."""

WITHOUT_MEANING = frozenset(
    {
        *("_commit_hash", "_fast_init", "_from_auto", "_from_pipeline", "code_revision", "from_flax", "from_tf"),
        *("low_cpu_mem_usage", "mirror", "offload_state_dict", "tqdm_class"),  # Transformers ignores most of these too
        *("allow_all_kernels", "disable_mmap", "experts_implementation", "weights_only"),
        *("max_memory", "offload_buffers", "offload_folder"),  # for models that do not fit into memory
        "ignore_mismatched_sizes",  # random weights are never made up
    }
)
"""Arguments that change nothing about a model that runs from its store."""

REFUSED = {
    "state_dict": "the weights are the store's; shard a checkpoint that holds those",
    "key_mapping": "shard a checkpoint whose weights have the names of its class",
    "gguf_file": "shard a checkpoint that holds the model's own weights",
    "adapter_name": "merge the adapter into its model, and shard what that saves",
    "tp_plan": "a model that runs from its store runs in one process",
    "tp_size": "a model that runs from its store runs in one process",
    "distributed_config": "a model that runs from its store runs in one process",
    "device_mesh": "a model that runs from its store runs in one process",
    "use_kernels": "the layers multiply by the store's shards with kernels of their own",
    "kernel_config": "the layers multiply by the store's shards with kernels of their own",
    "fusion_config": "the layers multiply by the store's shards with kernels of their own",
}
"""Arguments that ask for what cannot be done, and why it cannot or what to do instead."""


@dataclass(frozen=True)
class LoadArguments:
    """A call of `from_pretrained` with a store, or a checkpoint to run from one.

    `finding` are the `SOURCE_ARGUMENTS`; `arguments` and `named` go to the model class, and of the latter to the
    configuration those that it has fields for, unless `config` is one already.
    """

    source: str | Path
    finding: Mapping[str, Any]
    config: PreTrainedConfig | str | os.PathLike[str] | None
    dtype: torch.dtype | None
    attention: str | None
    generation_config: Any
    trust_remote_code: bool | None
    with_loading_info: bool
    arguments: tuple[Any, ...]
    named: Mapping[str, Any]

    @classmethod
    def of(cls, source: Any, arguments: tuple[Any, ...], given: Mapping[str, Any]) -> LoadArguments:
        """Sorts the arguments. Raises `ConfigurationError` or `UnsupportedUseError` for what is not supported."""
        if not isinstance(source, str | os.PathLike):
            raise ConfigurationError(
                f"sti_config needs the folder or Hub id of a checkpoint or store to load, not {source!r}."
            )
        _refuse(given)
        _check_device(given.get("device_map"))
        own = {
            *("config", "dtype", "torch_dtype", "attn_implementation", "generation_config", "trust_remote_code"),
            *("output_loading_info", "quantization_config", "device_map", "adapter_kwargs"),
        }
        others = WITHOUT_MEANING | REFUSED.keys() | own | set(SOURCE_ARGUMENTS)
        asked = given.get("dtype")
        return cls(
            source=source if isinstance(source, str) else Path(source),
            finding={name: given[name] for name in SOURCE_ARGUMENTS if given.get(name) is not None},
            config=given.get("config"),
            dtype=dtype_of(given.get("torch_dtype") if asked is None else asked),
            attention=given.get("attn_implementation"),
            generation_config=given.get("generation_config"),
            trust_remote_code=given.get("trust_remote_code"),
            with_loading_info=bool(given.get("output_loading_info")),
            arguments=arguments,
            named={name: value for name, value in given.items() if name not in others},
        )


def requested(given: dict[str, Any]) -> Any:
    """What a call asks of sti_hf, taken out of its arguments: its `sti_config`, or such a `quantization_config`; else
    None. Raises `ConfigurationError` for both, or for another quantization besides."""
    sti_config, quantization = given.pop("sti_config", None), given.get("quantization_config")
    if _is_ours(quantization):
        if sti_config is not None:
            raise ConfigurationError("sti_config and quantization_config both configure sti_hf: give one of them.")
        return given.pop("quantization_config")
    return sti_config


def dtype_of(asked: Any) -> torch.dtype | None:
    """The dtype that is asked for, None for "auto". Raises `ConfigurationError` where it is none of models."""
    dtype = getattr(torch, asked, asked) if isinstance(asked, str) else asked
    if dtype is None or dtype == "auto":
        return None
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise ConfigurationError(f"dtype must be 'auto' or a floating dtype of torch, such as float32, not {asked!r}.")
    return dtype


def check_attention(attention: Any) -> None:
    """Raises `UnsupportedUseError` for an implementation of attention that does not run from a store."""
    if attention is not None and attention not in ATTENTIONS:
        raise UnsupportedUseError(
            f"attn_implementation={attention!r} does not run from a store: use one of {', '.join(ATTENTIONS)}."
        )


def _is_ours(quantization: Any) -> bool:
    if isinstance(quantization, dict):
        return quantization.get("quant_method") == "sti"
    return isinstance(quantization, STIConfig)


def _refuse(given: Mapping[str, Any]) -> None:
    for name, why in REFUSED.items():
        if given.get(name):
            raise UnsupportedUseError(f"{name}= cannot be used with sti_config: {why}.")
    if given.get("quantization_config") is not None:
        raise ConfigurationError(
            "A model is quantized by sti_hf or as quantization_config says, not both: leave one of the two out."
        )
    if (given.get("adapter_kwargs") or {}).get("_adapter_model_path") is not None:
        raise UnsupportedUseError(f"An adapter cannot be used with sti_config: {REFUSED['adapter_name']}.")
    check_attention(given.get("attn_implementation"))


def _check_device(device_map: Any) -> None:
    """Raises `UnsupportedUseError` for a place that is not the CPU."""
    if torch.get_default_device().type != "cpu":
        raise UnsupportedUseError(
            f"A model runs from its store on the CPU, and torch's default device is {torch.get_default_device()}: set "
            "it to the CPU where the model is loaded and used."
        )
    by_itself = isinstance(device_map, str) and device_map in PLACING_BY_ITSELF
    if device_map is None or (by_itself and not torch.accelerator.is_available()):
        return
    places = device_map.values() if isinstance(device_map, Mapping) else [device_map]
    if {str(place).partition(":")[0] for place in places} != {"cpu"}:
        raise UnsupportedUseError(
            f"A model runs from its store on the CPU, and device_map={device_map!r} asks for another place: load it "
            "with device_map='cpu'."
        )
