"""Logits from the strips of a vocabulary, which are streamed, or held, as shards of layers are."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from sti_hf.model.vocabulary import VOCABULARY
from sti_hf.planning import Workload
from sti_hf.runtime.engine import Engine


def logits_of(engine: Engine, module: nn.Module, states: Tensor, words: int, is_step: bool) -> Tensor:
    """Logits `[..., words]`, without a bias, of hidden states `[..., columns]`, in their dtype.

    `engine` runs the strips, in the order of the words; `module` stands for them in the model. `is_step`: the states
    are of a text's further tokens, not of its prompt.
    """
    continued = engine.book.first_continued if is_step else None
    grid = engine.streamer.prepared.store.grid
    logits = states.new_empty(*states.shape[:-1], words)
    positions = states.shape[-2] if states.dim() > 1 else 1
    workload = Workload(positions, math.prod(states.shape[:-2]))
    with engine.turn(), torch.no_grad(), engine.inference(workload, continued) as inference:
        for layer in inference.layers:
            (inputs,), _ = inference.begin_layer(module, layer, (states,), {})
            first_of_layer = layer * grid.slices * grid.slice_rows
            for block in inference.blocks(layer, VOCABULARY):
                part = inference.path.multiply(inputs, inference.decompress(block), None)
                first = first_of_layer + block.first
                count = max(0, min(block.last - block.first, words - first))
                logits[..., first : first + count] = part[..., :count]
            inference.end_layer(None)
    return logits
