"""The head of a language model: the linear over its vocabulary, and what enters it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sti_hf.model.architecture import Architecture
from sti_hf.model.layer_runner import Inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class LanguageHead:
    """Of a model that predicts the next token."""

    def __init__(self, model: PreTrainedModel, decoder: nn.Linear) -> None:
        self._model, self._decoder = model, decoder

    @classmethod
    def of(cls, model: PreTrainedModel, architecture: Architecture) -> LanguageHead | None:
        """The head of `model`; None where it has none, or does not predict the next token."""
        if not predicts_next_token(model):
            return None
        modules: dict[str, Any] = dict(model.named_modules())
        found = [modules[path] for path in architecture.lm_decoders if path in modules]
        return cls(model, found[0]) if found else None

    def states(self, batch: Inputs) -> Tensor:
        """What enters the linear over the vocabulary, `[batch, tokens, hidden]`."""
        entered: list[Tensor] = []

        def stop(module: nn.Module, args: tuple[Tensor, ...]) -> None:
            entered.append(args[0])
            raise _Reached

        handle = self._decoder.register_forward_pre_hook(stop)
        try:
            self._model(**batch, use_cache=False)
        except _Reached:
            pass
        finally:
            handle.remove()
        return entered[0]

    def logits(self, states: Tensor) -> Tensor:
        """`[..., vocabulary]` of `states` `[..., hidden]`. The weights take no gradient."""
        bias = None if self._decoder.bias is None else self._decoder.bias.detach()
        logits = F.linear(states, self._decoder.weight.detach(), bias)
        config = self._model.config.get_text_config()
        scaling = getattr(config, "logits_scaling", None)  # Granite
        if scaling:
            logits = logits / scaling
        cap = getattr(config, "final_logit_softcapping", None)  # Gemma 2
        return logits if cap is None else cap * torch.tanh(logits / cap)


def predicts_next_token(model: PreTrainedModel) -> bool:
    """Whether this is a model that Transformers knows as a causal language model."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    return type(model).__name__ in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()


class _Reached(Exception):
    """What enters the linear is there: the rest of the forward is not run."""
