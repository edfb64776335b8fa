"""Workload: what one forward has to do."""

from __future__ import annotations

from dataclasses import dataclass

from sti_hf.errors import PlanError

SMALLEST_BUCKET = 16


@dataclass(frozen=True)
class Workload:
    """A batch of sequences of the same number of tokens, padding included.

    Args:
        tokens: new ones, of each sequence.
        batch: sequences.
        cached: tokens of each sequence whose keys and values a cache has.

    Raises `PlanError` unless these are whole numbers, of at least 1, 1 and 0.
    """

    tokens: int
    batch: int = 1
    cached: int = 0

    def __post_init__(self) -> None:
        for name, value, least in (("tokens", self.tokens, 1), ("batch", self.batch, 1), ("cached", self.cached, 0)):
            if isinstance(value, bool) or not isinstance(value, int) or value < least:
                raise PlanError(f"{name} of a workload must be a whole number of at least {least}, not {value!r}.")

    @property
    def all_tokens(self) -> int:
        """New tokens of all sequences together: linears, and all else that is done token by token, grow with them."""
        return self.tokens * self.batch

    @property
    def pairs(self) -> int:
        """New tokens of a sequence times the tokens that they attend to: attention grows with them."""
        return self.tokens * (self.tokens + self.cached)

    @staticmethod
    def bucket(tokens: int) -> int:
        """The token count that sequences of `tokens` tokens are planned for: the next power of two, at least 16; but 1
        for one, as each further token of a text that is written."""
        return 1 if tokens == 1 else max(SMALLEST_BUCKET, 1 << (tokens - 1).bit_length())

    def __str__(self) -> str:
        tokens = f"{self.tokens} token{'s' if self.tokens > 1 else ''}"
        tokens += f" after {self.cached}" if self.cached else ""
        return tokens if self.batch == 1 else f"{self.batch} sequences of {tokens}"
