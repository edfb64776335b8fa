"""The plans of a session: one for every length of input, made when it first comes."""

from __future__ import annotations

import copy
import warnings

import numpy as np

from sti_hf.config import STIConfig
from sti_hf.errors import InfeasibleLatencyError, UnsupportedUseError
from sti_hf.planning import ExecutionPlan, Planner, Workload, missed_target
from sti_hf.planning.refinement import LONGER, can_refine, wanted_bits
from sti_hf.runtime.generation import Continued

STEP_TOKENS = 16
"""New tokens behind a cache up to which a forward is a step of writing a text; more are a further prompt."""

PREDICTIONS = 1000
"""How many are kept, so that each is made once."""


def is_step(tokens: int, continued: Continued | None) -> bool:
    """Whether a forward is of a text's further tokens, not of a prompt."""
    return continued is not None and tokens <= STEP_TOKENS


class PlanBook:
    """Plans of one configuration. What stands beside a text in a batch does not change its plan.

    `first` is the plan for the length that the configuration names; `part` says in messages what of a model the plans
    are for, where that is not all of it. Raises `InfeasibleLatencyError` where the first misses T and the
    configuration is strict; else it is a warning.
    """

    def __init__(self, planner: Planner, config: STIConfig, tokens: int | None = None, part: str = "") -> None:
        self.planner, self.config, self._part = planner, config, part
        self._plans: dict[tuple[int, tuple[int, int] | None, bool], ExecutionPlan] = {}
        self._pinned: ExecutionPlan | None = None
        self._predicted: dict[tuple[ExecutionPlan, Workload], float] = {}
        self._announced_smaller = False
        self.first = self._planned(tokens)

    def replanned(self, config: STIConfig, tokens: int | None) -> PlanBook:
        """A book of plans for another configuration, whose first plan is for so many tokens (None: its own)."""
        return PlanBook(self.planner, config, tokens, self._part)

    def pinned(self, plan: ExecutionPlan) -> PlanBook:
        """A book with this plan alone, whatever the number of tokens."""
        book = copy.copy(self)
        book.first = book._pinned = plan
        return book

    @property
    def is_pinned(self) -> bool:
        """Whether its plan was given, and not made for a T that was asked for."""
        return self._pinned is not None

    def plan_for(self, tokens: int, continued: Continued | None = None) -> ExecutionPlan:
        """The plan for sequences of so many tokens, which may go on from a key/value cache, with its submodel.

        Further tokens of a text run by the plan for those, where there is a T for them; else by the plan of its
        prompt. Raises `UnsupportedUseError` where no plan has the cache's submodel.
        """
        if continued is None:
            return self._pinned or self._planned(tokens)
        plan = self._pinned or self._going_on(tokens, continued)
        if plan.submodel != continued.submodel:
            n, m = continued.submodel
            raise UnsupportedUseError(
                f"The key/value cache was made by a submodel of {n} x {m}, and the plans of this session run "
                f"{plan.submodel[0]} x {plan.submodel[1]}: begin the text anew, without that cache."
            )
        return plan

    @property
    def first_continued(self) -> Continued:
        """What further tokens of a text go on from whose prompt the first plan ran."""
        return Continued(self.first.submodel, 1, self.first)

    def _going_on(self, tokens: int, continued: Continued) -> ExecutionPlan:
        if is_step(tokens, continued):
            if self.config.target_token_latency is not None:
                return self._planned(1, continued.submodel, of_steps=True)
            if continued.plan in self._plans.values():
                assert continued.plan is not None
                return continued.plan
            tokens += continued.tokens
        plan = self._planned(tokens)
        return plan if plan.submodel == continued.submodel else self._planned(tokens, continued.submodel)

    def predicted(self, plan: ExecutionPlan, workload: Workload) -> float:
        """Seconds that a plan is predicted to take for some work, its preload buffer filled."""
        key = plan, workload
        if key not in self._predicted:
            if len(self._predicted) >= PREDICTIONS:
                self._predicted.clear()
            self._predicted[key] = self.planner.latency(plan, workload)
        return self._predicted[key]

    def wanted(self, plan: ExecutionPlan) -> np.ndarray | None:
        """int64 `[N, M]`: the fidelities to read up to where there is time; None where runs are not refined."""
        if not (self.config.refine and can_refine(plan)):
            return None
        if plan is self._pinned:
            return plan.bits
        longer = self.config.replaced(target_latency=LONGER * plan.target_latency)
        return wanted_bits(plan, self.planner.plan(longer, plan.workload))

    def _planned(
        self, tokens: int | None, submodel: tuple[int, int] | None = None, of_steps: bool = False
    ) -> ExecutionPlan:
        if self.config.fixed_plan and self._plans and not of_steps:
            tokens = None
        workload = self.planner.workload(self.config, tokens)
        key = workload.tokens, submodel, of_steps
        if key not in self._plans:
            config = self.config
            if of_steps and config.target_token_latency is not None:
                config = config.replaced(target_latency=config.target_token_latency)
            plan = self.planner.plan(config, workload, submodel)
            self._announce(plan, chosen=submodel is None)
            self._plans[key] = plan
        return self._plans[key]

    def _announce(self, plan: ExecutionPlan, chosen: bool) -> None:
        """Says what a user would not expect of a plan, whose submodel was `chosen` by it, or else given."""
        if not plan.feasible:
            message = missed_target(plan)
            if self._part:
                message += (
                    f" That is of {self._part} alone: parts share the target latency in proportion to their weights."
                )
            if self.config.strict:
                raise InfeasibleLatencyError(message)
            warnings.warn(message + " It runs all the same.", stacklevel=2)
        first = next(iter(self._plans.values()), plan)
        if (
            chosen
            and not self._announced_smaller
            and any(now < then for now, then in zip(plan.submodel, first.submodel))
        ):
            self._announced_smaller = True
            warnings.warn(
                f"Texts of {plan.workload.tokens} tokens run a submodel of {_text(plan)}, smaller than the "
                f"{_text(first)} of {first.workload.tokens} tokens: ask for a longer target_latency, or for "
                "fixed_plan=True.",
                stacklevel=2,
            )


def _text(plan: ExecutionPlan) -> str:
    return f"{plan.submodel[0]} x {plan.submodel[1]}"
