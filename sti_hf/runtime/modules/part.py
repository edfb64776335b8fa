"""What all modules have in common that run from a store."""

from __future__ import annotations

from typing import Any, NoReturn

from sti_hf.errors import UnsupportedUseError


def refuse_copy(protocol: Any) -> NoReturn:
    """Raises `UnsupportedUseError`, where something would be copied or pickled."""
    raise UnsupportedUseError(
        "A part of a model that runs from its store cannot be copied or pickled by itself: copy the model."
    )


class StoredPart:
    """A part of a model that runs from its store: it is nothing without the model."""

    def __reduce_ex__(self, protocol: Any) -> NoReturn:
        refuse_copy(protocol)
