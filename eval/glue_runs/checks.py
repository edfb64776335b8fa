"""What the paper and the project claim of `sti`, held against the rows of one task."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from eval.glue_runs.row import Row
from eval.markdown import signed
from sti_hf.shards.layout import FULL

WITHIN_FULL = 1.0
NOISE = 0.3
ABOVE = 1.0
"""Points."""

Choice = Callable[[Sequence[Row], str, float], Row | None]
"""Chooses one of a baseline's rows for a T."""


@dataclass(frozen=True)
class Check:
    """A claim, whether it holds (None: a figure without a bound, or nothing was measured that could tell), and the
    figures."""

    claim: str
    holds: bool | None
    figures: str


def checks(rows: Sequence[Row]) -> list[Check]:
    """All checks that these rows of one task admit."""
    tests = (_within_full, _never_below, _above_at_tightest, _full_misses, _keeps_target, _memory, _streamed)
    return [check for test in tests for check in test(rows)]


def sti_rows(rows: Sequence[Row]) -> list[Row]:
    """Those of `sti`, by S and then by T."""
    return sorted((row for row in rows if row.is_sti), key=lambda row: (_budget(row), _target(row)))


def highest_valid(rows: Sequence[Row], strategy: str, target: float) -> Row | None:
    """The row of a baseline with the most bits of those that keep T; None where none does."""
    return max(_valid(rows, strategy, target), key=lambda row: row.mean_bits, default=None)


def best_valid(rows: Sequence[Row], strategy: str, target: float) -> Row | None:
    """The row of a baseline with the best metric of those that keep T, which is known in hindsight only."""
    return max(_valid(rows, strategy, target), key=lambda row: row.metric, default=None)


def _valid(rows: Sequence[Row], strategy: str, target: float) -> list[Row]:
    return [row for row in rows if row.setting.strategy == strategy and row.keeps(target)]


def full_row(rows: Sequence[Row], strategy: str) -> Row | None:
    """A baseline with full weights."""
    return next((row for row in rows if row.setting.strategy == strategy and row.setting.fidelity == FULL), None)


def where(row: Row) -> str:
    """T and S of a row of `sti`."""
    return f"T {_target(row) * 1e3:.1f} ms, S {_budget(row) / 1e6:g} MB"


def _target(row: Row) -> float:
    assert row.setting.target is not None
    return row.setting.target


def _budget(row: Row) -> int:
    assert row.setting.preload_budget is not None
    return row.setting.preload_budget


def _within_full(rows: Sequence[Row]) -> list[Check]:
    claim = f"wherever T admits 3 bits on average, within {WITHIN_FULL} points of the preloaded full model"
    full = full_row(rows, "preload")
    admitted = [row for row in sti_rows(rows) if row.admits_three_bits]
    if full is None or not admitted:
        return [_unknown(claim, "no preloaded full model, or no T that admits 3 bits")]
    within = [row for row in admitted if row.metric >= full.metric - WITHIN_FULL]
    worst = min(admitted, key=lambda row: row.metric)
    lost = f"{signed(worst.metric - full.metric)} ({worst.metric:.1f} against {full.metric:.1f}) at {where(worst)}"
    figures = f"{len(within)} of {len(admitted)} T × S; worst {lost}"
    return [Check(claim, len(within) == len(admitted), figures)]


def _never_below(rows: Sequence[Row]) -> list[Check]:
    claim = f"at equal T never below std_pipeline by more than {NOISE}, at its"
    return [
        _not_below(f"{claim} highest valid fidelity", _compared(rows, highest_valid)),
        _not_below(f"{claim} best valid fidelity in hindsight", _compared(rows, best_valid)),
    ]


def _not_below(claim: str, compared: list[tuple[Row, Row]]) -> Check:
    if not compared:
        return _unknown(claim, "std_pipeline keeps none of these T")
    row, other = min(compared, key=lambda pair: pair[0].metric - pair[1].metric)
    below = [pair for pair in compared if pair[0].metric - pair[1].metric < -NOISE]
    figures = f"below in {len(below)} of {len(compared)} T × S; least {_against(row, other)} at {where(row)}"
    return Check(claim, not below, figures)


def _above_at_tightest(rows: Sequence[Row]) -> list[Check]:
    """For every S at the tightest T that both keep; and what `sti` does at the tightest T that it keeps itself."""
    claim = f"at the tightest T that std_pipeline keeps too, at least {ABOVE:g} above it"
    checked = []
    for budget in sorted({_budget(row) for row in sti_rows(rows)}):
        at = f", S {budget / 1e6:g} MB"
        feasible = [row for row in sti_rows(rows) if row.feasible and _budget(row) == budget]
        pairs = [(row, other) for row, other in _compared(rows, highest_valid) if row in feasible]
        if not pairs:
            checked.append(_unknown(claim + at, "no such T"))
            continue
        row, other = pairs[0]
        figures = f"{_against(row, other)} at {_target(row) * 1e3:.1f} ms"
        if feasible[0] is not row:
            figures += (
                f"; at {_target(feasible[0]) * 1e3:.1f} ms sti has {feasible[0].metric:.1f}, std_pipeline no plan"
            )
        checked.append(Check(claim + at, row.metric - other.metric >= ABOVE, figures))
    return checked


def _full_misses(rows: Sequence[Row]) -> list[Check]:
    """Whether the full-fidelity baselines miss the tightest T that `sti` keeps; and the longest that they miss."""
    feasible = [row for row in sti_rows(rows) if row.feasible]
    found = []
    for strategy in ("load_exec", "std_pipeline"):
        claim = f"{strategy} with full weights misses the tightest T"
        full = full_row(rows, strategy)
        if full is None or not feasible:
            found.append(_unknown(claim, "not measured"))
            continue
        targets = sorted({_target(row) for row in feasible})
        missed = [target for target in targets if full.cold_p50 > target]
        longest = f"; it misses {len(missed)} of the {len(targets)} T that sti keeps"
        figures = f"cold p50 {full.cold_p50 * 1e3:.1f} ms, T {targets[0] * 1e3:.1f} ms{longest}"
        found.append(Check(claim, full.cold_p50 > targets[0], figures))
    return found


def _keeps_target(rows: Sequence[Row]) -> list[Check]:
    claim = "the cold median of sti keeps T where the plan does"
    feasible = [row for row in sti_rows(rows) if row.feasible]
    if not feasible:
        return [_unknown(claim, "no plan keeps T")]
    kept = [row for row in feasible if row.cold_p50 <= _target(row)]
    slowest = max(feasible, key=lambda row: row.cold_p50 / _target(row))
    share = slowest.cold_p50 / _target(slowest)
    figures = f"{len(kept)} of {len(feasible)} T × S; at most {share:.2f} of T, at {where(slowest)}"
    return [Check(claim, len(kept) == len(feasible), figures)]


def _memory(rows: Sequence[Row]) -> list[Check]:
    """The ratio over all T and S that `sti` keeps, and that at those at which it is as good."""
    claim = "peak weight memory: the preloaded full model over sti"
    full, ours = full_row(rows, "preload"), [row for row in sti_rows(rows) if row.feasible]
    if full is None or not ours:
        return [_unknown(claim, "not measured")]
    as_good = [row for row in ours if row.metric >= full.metric - WITHIN_FULL]
    found = [Check(claim, None, _ratios(full, ours))]
    if as_good:
        found.append(Check(f"{claim} where it is within {WITHIN_FULL} points", None, _ratios(full, as_good)))
    return found


def _ratios(full: Row, ours: Sequence[Row]) -> str:
    least, most = (choose(ours, key=lambda row: row.memory["peak"]) for choose in (min, max))
    parts = [
        f"{full.memory['peak'] / row.memory['peak']:.1f} × ({row.memory['peak'] / 1e6:.1f} MB at {where(row)})"
        for row in (most, least)
    ]
    return f"{full.memory['peak'] / 1e6:.1f} MB; {' to '.join(parts)}"


def _streamed(rows: Sequence[Row]) -> list[Check]:
    found = [row.streamed for row in rows if row.streamed is not None]
    if not found:
        return []
    same, asked = sum(one.same for one in found), sum(one.sentences for one in found)
    change = max(one.largest_change for one in found)
    figures = f"{same} of {asked} answers, of {len(found)} plans; a logit changed by {change:.2g} at most"
    return [Check("the streamed model answers as the plan's weights do in batches", same == asked, figures)]


def _compared(rows: Sequence[Row], choose: Choice) -> list[tuple[Row, Row]]:
    """Rows of `sti`, each with the chosen `std_pipeline` that keeps its T, where there is one."""
    pairs = ((row, choose(rows, "std_pipeline", _target(row))) for row in sti_rows(rows))
    return [(row, other) for row, other in pairs if other is not None]


def _against(row: Row, other: Row) -> str:
    figures = f"{row.metric:.1f} against {other.metric:.1f} at {other.setting.fidelity} bits"
    return f"{signed(row.metric - other.metric)} ({figures})"


def _unknown(claim: str, why: str) -> Check:
    return Check(claim, None, why)
