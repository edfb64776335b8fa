"""Tiny models with random weights, of every supported family and with every task head that Transformers has."""

from __future__ import annotations

import importlib
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CONFIG_MAPPING, PreTrainedConfig, PreTrainedModel

from sti_hf.model import supported_model_types
from sti_hf.model.stacks import STACKED, stack_models

LAYERS, HEADS, HIDDEN, FFN, VOCABULARY, POSITIONS = 3, 4, 32, 64, 211, 70

_SIZES = {
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "hidden_size": HIDDEN,
    "intermediate_size": FFN,
}
_LLAMAS = (
    *("llama", "smollm3", "mistral", "qwen2", "qwen3", "granite", "phi3"),
    *("gemma", "gemma2", "gemma3_text", "olmo2", "olmo3"),
)
DECODERS = (*_LLAMAS, "gpt2", "gpt_neox", "opt")
"""Families of language models."""

GATED = frozenset({"nomic_bert", "gte", "eurobert", "modernbert", *_LLAMAS})
"""Families whose FFNs have a gate."""

KEY_VALUE_HEADS = {"eurobert": 2, **dict.fromkeys(_LLAMAS, 2), "gemma": 1}
"""Of families whose query heads share keys and values."""

UNDROPPABLE = ("gemma", "olmo2", "olmo3")
"""Families whose slices are not droppable: heads share all keys, as in Gemma 2B, or norms go over all heads."""

_SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}

_IMAGES = {**_SIZES, "image_size": 16, "patch_size": 8}
IMAGE_FAMILIES = (
    *("vit", "deit", "dinov2", "dinov2_with_registers", "dinov3_vit"),
    *("clip_vision_model", "siglip_vision_model"),
)
"""Families that see images."""

SOUND_FAMILIES = ("audio-spectrogram-transformer",)
"""Families that hear, by what is seen of it."""

_FAMILY = {
    **{name: {**_IMAGES, "mlp_ratio": FFN // HIDDEN} for name in IMAGE_FAMILIES},
    **{name: {**_SIZES, "patch_size": 8, "max_length": 24, "num_mel_bins": 16} for name in SOUND_FAMILIES},
    **{f"{name}_text_model": {**_SIZES, "projection_size": HIDDEN, "eos_token_id": 3} for name in ("clip", "siglip")},
    "distilbert": {"n_layers": LAYERS, "n_heads": HEADS, "dim": HIDDEN, "hidden_dim": FFN},
    "deberta-v2": {
        **_SIZES,
        "relative_attention": True,
        "position_buckets": 8,
        "share_att_key": True,
        "pos_att_type": ["c2p", "p2c"],
        "position_biased_input": False,
        "norm_rel_ebd": "layer_norm",
    },
    **{
        name: {
            **_SIZES,
            "num_key_value_heads": KEY_VALUE_HEADS[name],
            "head_dim": HIDDEN // HEADS,
            "bos_token_id": 2,
            "eos_token_id": 2,
            **(_SLIDING if name in ("gemma2", "gemma3_text", "olmo3") else {}),
            # Without it Granite's attention is sharper than anybody trains it.
            **({"attention_multiplier": (HIDDEN // HEADS) ** -0.5} if name == "granite" else {}),
        }
        for name in _LLAMAS
    },
    "gpt2": {"n_layer": LAYERS, "n_head": HEADS, "n_embd": HIDDEN, "n_inner": FFN, "n_positions": POSITIONS},
    "opt": {**_SIZES, "ffn_dim": FFN, "word_embed_proj_dim": HIDDEN},
    "electra": {**_SIZES, "embedding_size": 16},
    "modernbert": {
        **_SIZES,
        **dict.fromkeys(("bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id"), 2),
        "local_attention": 8,
        "global_attn_every_n_layers": 2,
    },
    "eurobert": {**_SIZES, "num_key_value_heads": 2, "bos_token_id": 2, "eos_token_id": 2, "mask_token_id": 2},
}


def tiny_config(model_type: str, **overrides: Any) -> PreTrainedConfig:
    """Configuration of a tiny model: 3 layers, 4 heads, hidden 32, FFN 64, vocabulary 211."""
    if model_type in STACKED:
        parts = {field: tiny_config(f"{model_type}_{path}").to_dict() for path, field in STACKED[model_type].items()}
        return CONFIG_MAPPING[model_type](**parts, **overrides)
    texts = {"vocab_size": VOCABULARY, "max_position_embeddings": POSITIONS, "pad_token_id": 1}
    fields = {
        **({} if model_type in (*IMAGE_FAMILIES, *SOUND_FAMILIES) else texts),
        **_FAMILY.get(model_type, _SIZES),
        **overrides,
    }
    return CONFIG_MAPPING[model_type](**fields)


def _task_heads(model_type: str) -> list[type[PreTrainedModel]]:
    config_module = CONFIG_MAPPING[model_type].__module__
    modeling = importlib.import_module(config_module.replace(".configuration_", ".modeling_"))
    public = (getattr(modeling, name) for name in modeling.__all__ if not name.endswith("PreTrainedModel"))
    models = [item for item in public if isinstance(item, type) and issubclass(item, PreTrainedModel)]
    heads = [
        item
        for item in models
        if item.config_class.model_type == model_type and not item.__name__.endswith("Backbone")
    ]
    # The other heads of language models are Llama's, the same code in every family.
    few = model_type in DECODERS and model_type != "llama"
    return [head for head in heads if not few or head.__name__.endswith(("Model", "ForCausalLM"))]


TASK_HEADS: dict[str, list[type[PreTrainedModel]]] = {
    name: _task_heads(name) for name in supported_model_types() if name not in STACKED
}
"""Every stock model class of each supported `model_type` with one stack, the base model included; of most
language models only that and the one that generates."""


FAMILIES = sorted(TASK_HEADS)


def head_of(model_type: str) -> type[PreTrainedModel]:
    """A sequence classifier of the family, or its first class."""
    heads = TASK_HEADS[model_type]
    return next((head for head in heads if head.__name__.endswith("SequenceClassification")), heads[0])


def tiny_model(model_class: type[PreTrainedModel], seed: int = 0, **overrides: Any) -> PreTrainedModel:
    """Tiny model in eval mode whose every parameter is random and of visible size, tied weights tied.

    Causal language models are decoders. `attn_implementation` among `overrides` goes to the model.
    """
    if "LMHead" in model_class.__name__ or "Causal" in model_class.__name__:
        overrides = {"is_decoder": True, **overrides}
    config = tiny_config(model_class.config_class.model_type, **overrides)
    model = model_class._from_config(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
        for module in model.modules():
            name = type(module).__name__
            # Gemma's norms add the one themselves.
            if isinstance(module, nn.LayerNorm) or (name.endswith("RMSNorm") and not name.startswith("Gemma")):
                module.weight.add_(1.0)
    return model


def tiny_inputs(
    model: PreTrainedModel, batch: int = 3, tokens: int = 11, padded: bool = True, seed: int = 0
) -> dict[str, Tensor]:
    """Random `input_ids` and `attention_mask`, `[batch, tokens]` (multiple choice: `[batch, 2, tokens]`), or images.

    With `padded` every row but the first ends with padding, another length each.
    """
    parts = stack_models(model)
    if "" not in parts:
        inputs = [tiny_inputs(part, batch, tokens, padded, seed) for part in parts.values()]
        return {name: value for each in inputs for name, value in each.items()}
    if model.config.model_type in IMAGE_FAMILIES:
        size = (batch, model.config.num_channels, model.config.image_size, model.config.image_size)
        return {"pixel_values": torch.randn(size, generator=torch.Generator().manual_seed(seed))}
    if model.config.model_type in SOUND_FAMILIES:
        size = batch, model.config.max_length, model.config.num_mel_bins
        return {"input_values": torch.randn(size, generator=torch.Generator().manual_seed(seed))}
    shape = (batch, 2, tokens) if type(model).__name__.endswith("MultipleChoice") else (batch, tokens)
    generator = torch.Generator().manual_seed(seed)
    input_ids = torch.randint(2, model.config.vocab_size, shape, generator=generator)
    lengths = torch.full((input_ids.numel() // tokens,), tokens)
    if padded:
        lengths -= torch.arange(len(lengths)) % (tokens - 1)
    attention_mask = (torch.arange(tokens) < lengths[:, None]).long().view(shape)
    return {"input_ids": input_ids.masked_fill(attention_mask == 0, 1), "attention_mask": attention_mask}
