"""A head over the vocabulary that is streamed from the store."""

from __future__ import annotations

import numpy as np
from torch import Tensor, nn

from sti_hf.runtime.forwards import Forwards
from sti_hf.runtime.modules.part import StoredPart
from sti_hf.runtime.vocabulary import logits_of


class StreamedDecoder(StoredPart, nn.Module):
    """A language-model head over the vocabulary: run from its strips, or, where they are not planned for or the layers
    run at full fidelity, streamed from the store's `table` in blocks of rows."""

    def __init__(self, linear: nn.Linear, table: str, forwards: Forwards) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.bias = linear.bias
        self.table = table
        self._forwards = forwards

    @property
    def key(self) -> tuple[Forwards, str]:
        """What tells its table from others: of which stack it is, and its name."""
        return self._forwards, self.table

    @property
    def weight(self) -> Tensor:
        """All rows `[out_features, in_features]`, read from the store for this call: a copy."""
        return self._forwards.tables[self.table].read(np.arange(self.out_features))

    def stock(self) -> nn.Linear:
        """The module in whose place this stands, with its bias and without a weight (on the device meta)."""
        linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None, device="meta")
        linear.bias = self.bias
        return linear

    def forward(self, x: Tensor) -> Tensor:
        """`x` `[..., in_features]` to logits `[..., out_features]`."""
        engine = self._forwards.engine
        with engine.turn():
            strips = self._forwards.strips
            if strips is None or x.numel() == 0:
                logits = self._by_table(x)
            else:
                logits = logits_of(strips, self, x, self.out_features, engine.is_step)
        return logits if self.bias is None else logits + self.bias

    def _by_table(self, x: Tensor) -> Tensor:
        logits = x.new_empty(*x.shape[:-1], self.out_features)
        if x.numel():
            for first, block in self._forwards.tables[self.table].blocks():
                logits[..., first : first + len(block)] = x @ block.to(x).t()
        return logits
