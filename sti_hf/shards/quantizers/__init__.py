"""Quantizers, by name. Each keeps the nesting of fidelities that the store relies on (`base.Quantizer`)."""

from __future__ import annotations

from collections.abc import Callable

from sti_hf.shards.quantizers.base import Outliers, QuantizedLayer, Quantizer
from sti_hf.shards.quantizers.gobo import GoboQuantizer
from sti_hf.shards.quantizers.lloyd import LloydQuantizer

__all__ = ["DEFAULT_QUANTIZER", "QUANTIZERS", "Outliers", "QuantizedLayer", "Quantizer", "get_quantizer"]

QUANTIZERS: dict[str, Callable[[], Quantizer]] = {"gobo": GoboQuantizer, "lloyd": LloydQuantizer}
DEFAULT_QUANTIZER = "lloyd"


def get_quantizer(name: str) -> Quantizer:
    """The quantizer called `name`; raises `ValueError` with the names there are."""
    if name not in QUANTIZERS:
        raise ValueError(f"There is no quantizer {name!r}; choose one of {', '.join(sorted(QUANTIZERS))}.")
    return QUANTIZERS[name]()
