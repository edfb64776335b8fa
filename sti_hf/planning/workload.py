from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

SMALLEST_BUCKET = 16


@dataclass(frozen=True)
class Workload:
    tokens: int
    batch: int = 1

    @property
    def all_tokens(self) -> int:
        return self.tokens * self.batch

    @staticmethod
    def bucket(tokens: int) -> int:
        return max(SMALLEST_BUCKET, 1 << (tokens - 1).bit_length())


class Planner(Protocol):
    def plan(self, config: Any, workload: Workload) -> Any: ...
    def latency(self, plan: Any, workload: Workload) -> float: ...
