"""Workload: what one forward has to do."""

from __future__ import annotations

from dataclasses import dataclass

from sti_hf.errors import PlanError

SMALLEST_BUCKET = 16


@dataclass(frozen=True)
class Workload:
    """A batch of sequences of the same number of tokens, padding included.

    Raises `PlanError` unless both are whole numbers of at least 1.
    """

    tokens: int
    batch: int = 1

    def __post_init__(self) -> None:
        for name, value in (("tokens", self.tokens), ("batch", self.batch)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise PlanError(f"{name} of a workload must be a whole number of at least 1, not {value!r}.")

    @property
    def all_tokens(self) -> int:
        """Of all sequences together. This is what compute is priced by."""
        return self.tokens * self.batch

    @staticmethod
    def bucket(tokens: int) -> int:
        """The token count that sequences of `tokens` tokens are planned for: the next power of two, at least 16."""
        return max(SMALLEST_BUCKET, 1 << (tokens - 1).bit_length())

    def __str__(self) -> str:
        tokens = f"{self.tokens} token{'s' if self.tokens > 1 else ''}"
        return tokens if self.batch == 1 else f"{self.batch} sequences of {tokens}"
