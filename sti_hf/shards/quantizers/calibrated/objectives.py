"""What row scales are tuned towards: what the model computed with its full weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Protocol

import torch
from torch import Tensor
from torch.nn import functional as F

from sti_hf.model.layer_runner import Inputs, layers_of, output_of_layer
from sti_hf.process_memory import return_freed_memory
from sti_hf.shards.quantizers.calibrated.forward_passes import token_mask
from sti_hf.shards.quantizers.calibrated.language_head import LanguageHead
from sti_hf.shards.quantizers.calibrated.scratch import Scratch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKENS_AT_ONCE = 256
"""A batch goes through the model in even parts of about so many tokens, whose gradients add up: memory is a part's."""


class Objective(Protocol):
    """Is made while the model has its full weights, and keeps in the scratch folder what it computes."""

    def backward(self, index: int, parameters: Sequence[Tensor]) -> None:
        """Adds the gradients of the loss of batch `index` to those of `parameters`."""
        ...


class HiddenStatesObjective:
    """The relative squared error of every layer's hidden states, and the divergence of the predicted classes."""

    def __init__(self, model: PreTrainedModel, batches: Sequence[Inputs], scratch: Scratch) -> None:
        self._model, self._batches, self._scratch = model, batches, scratch
        self._layers = list(layers_of(model))
        for index, batch in enumerate(batches):
            with torch.no_grad():
                states, logits = self._run(batch)
            targets = {str(layer): state.half() for layer, state in enumerate(states)}
            scratch.save(f"targets.{index}", targets if logits is None else {**targets, "logits": logits})
        return_freed_memory()

    def backward(self, index: int, parameters: Sequence[Tensor]) -> None:
        """See `Objective`."""
        batch, targets = self._batches[index], self._scratch.load(f"targets.{index}")
        target_states = [targets[str(layer)] for layer in range(len(self._layers))]
        mask = token_mask(batch, target_states[0])[..., None]
        squares = [(target.float() * mask).square().sum() for target in target_states]
        rows, tokens = target_states[0].shape[:2]
        for part in _parts(rows, tokens):
            states, logits = self._run({name: tensor[part] for name, tensor in batch.items()})
            # The squared errors' gradients are given rather than found: their graph would hold four times the states.
            gradients: list[Tensor | None] = [
                (state.detach() - target[part]) * mask[part] * (2 / square)
                for state, target, square in zip(states, target_states, squares, strict=True)
            ]
            if logits is not None:
                log_target = targets["logits"][part].log_softmax(-1)
                divergence = F.kl_div(logits.log_softmax(-1), log_target, log_target=True, reduction="sum")
                states.append(divergence / rows)
                gradients.append(None)
            return_freed_memory()  # states lie between what the layers left
            torch.autograd.backward(states, gradients, inputs=list(parameters))

    def _run(self, batch: Inputs) -> tuple[list[Tensor], Tensor | None]:
        """Hidden states after every layer, and the logits of a model that classifies texts."""
        states: list[Tensor] = []
        handles = [
            layer.register_forward_hook(lambda module, args, output: states.append(output_of_layer(output)))
            for layer in self._layers
        ]
        try:
            logits = getattr(self._model(**batch), "logits", None)
        finally:
            for handle in handles:
                handle.remove()
        is_classifier = logits is not None and logits.ndim == 2 and logits.shape[-1] > 1
        return states, logits if is_classifier else None


class NextTokenObjective:
    """The divergence of the predicted next tokens, a mean over a batch's tokens.

    `moments` float32 `[hidden, hidden]`: second moments of the hidden states that enter the head.
    """

    def __init__(self, head: LanguageHead, batches: Sequence[Inputs], scratch: Scratch) -> None:
        self._head, self._batches, self._scratch = head, batches, scratch
        self.moments = torch.zeros(())
        for index, batch in enumerate(batches):
            with torch.no_grad():
                states = head.states(batch)
            tokens = states[token_mask(batch, states)]
            self.moments = self.moments + tokens.t() @ tokens
            scratch.save(f"targets.{index}", {"states": states})
        return_freed_memory()

    def backward(self, index: int, parameters: Sequence[Tensor]) -> None:
        """See `Objective`."""
        batch, target = self._batches[index], self._scratch.load(f"targets.{index}")["states"]
        mask = token_mask(batch, target)
        for part in _parts(*target.shape[:2]):
            states = self._head.states({name: tensor[part] for name, tensor in batch.items()})
            log_target = self._head.logits(target[part][mask[part]]).log_softmax(-1)
            log_predicted = self._head.logits(states[mask[part]]).log_softmax(-1)
            divergence = F.kl_div(log_predicted, log_target, log_target=True, reduction="sum") / mask.sum()
            del log_target, log_predicted
            torch.autograd.backward([divergence], inputs=list(parameters))
            return_freed_memory()


def _parts(rows: int, tokens: int) -> Iterator[Tensor]:
    """Indices of the rows of a batch that go through the model together."""
    yield from torch.arange(rows).tensor_split(min(rows, -(-rows * tokens // TOKENS_AT_ONCE)))
