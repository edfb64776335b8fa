"""What a session needs of planning."""

from __future__ import annotations

from typing import Any, Protocol

from sti_hf.planning.plan import ExecutionPlan
from sti_hf.planning.workload import Workload


class Planner(Protocol):
    """Makes the plans of one store on one device."""

    def plan(self, config: Any, workload: Workload, submodel: tuple[int, int] | None = None) -> ExecutionPlan:
        """The plan of an `STIConfig` for a workload, of this submodel (n, m) if one is given; whether it keeps T or
        not (`ExecutionPlan.feasible`)."""
        ...

    def workload(self, config: Any, tokens: int | None = None) -> Workload:
        """The workload that sequences of so many tokens are planned for; None: of as many as an `STIConfig` names."""
        ...

    def latency(self, plan: ExecutionPlan, workload: Workload) -> float:
        """Predicted seconds of a plan's forward, on a filled preload buffer, with another workload than its own."""
        ...


class OnePlan:
    """A `Planner` that knows one plan, which is made already, and predicts its own latency for whatever it runs."""

    def __init__(self, plan: ExecutionPlan) -> None:
        self._plan = plan

    def plan(self, config: Any, workload: Workload, submodel: tuple[int, int] | None = None) -> ExecutionPlan:
        """That plan."""
        return self._plan

    def workload(self, config: Any, tokens: int | None = None) -> Workload:
        """The plan's."""
        return self._plan.workload

    def latency(self, plan: ExecutionPlan, workload: Workload) -> float:
        """The plan's own prediction."""
        return plan.predicted_latency
