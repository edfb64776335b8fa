"""Quantizers, by name. Each keeps the nesting of fidelities that the store relies on (`base.Quantizer`)."""

from __future__ import annotations

from collections.abc import Callable

from sti_hf.errors import ConfigurationError
from sti_hf.shards.quantizers.base import ModelQuantizer, Outliers, QuantizedLayer, Quantizer
from sti_hf.shards.quantizers.gobo import GoboQuantizer
from sti_hf.shards.quantizers.lloyd import LloydQuantizer

__all__ = [
    "CALIBRATED",
    "DEFAULT_QUANTIZER",
    "QUANTIZERS",
    "QUANTIZER_NAMES",
    "ModelQuantizer",
    "Outliers",
    "QuantizedLayer",
    "Quantizer",
    "check_quantizer",
    "get_quantizer",
]

QUANTIZERS: dict[str, Callable[[], ModelQuantizer]] = {"gobo": GoboQuantizer, "lloyd": LloydQuantizer}
"""Those that look at weights alone."""

CALIBRATED = "calibrated"
"""The one that `calibrated.calibrate` makes for a model, from text."""

QUANTIZER_NAMES = (CALIBRATED, *QUANTIZERS)
DEFAULT_QUANTIZER = "lloyd"


def check_quantizer(name: str) -> None:
    """Raises `ValueError`, with the names there are, where `name` is none of them."""
    if name not in QUANTIZER_NAMES:
        raise ConfigurationError(
            f"There is no quantizer {name!r}; choose one of {', '.join(sorted(QUANTIZER_NAMES))}."
        )


def get_quantizer(name: str) -> ModelQuantizer:
    """The quantizer called `name`, of `QUANTIZERS`. Raises `ValueError` for one that is not there or needs text."""
    check_quantizer(name)
    if name == CALIBRATED:
        raise ConfigurationError(
            "The quantizer 'calibrated' needs calibration text: sti shard SRC STORE --calibration TEXT."
        )
    return QUANTIZERS[name]()
