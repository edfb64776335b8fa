"""From measurements to a table: medians, and how many times as much a competitor takes as sti_hf."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Any

from eval.coldstart.registry import FP32, STI
from eval.markdown import table

MILLISECONDS = ("ttfa", "load", "first_forward", "warm_forward", "evicted_forward")
MEGABYTES = ("disk_bytes", "evicted_disk_bytes", "resident_growth", "highest_growth")
RATIOS = ("ttfa", "evicted_forward", "warm_forward", "resident_growth")
TITLES = {
    "ttfa": "TTFA",
    "load": "load",
    "first_forward": "first forward",
    "warm_forward": "later, warm",
    "evicted_forward": "later, evicted",
    "disk_bytes": "read for TTFA",
    "evicted_disk_bytes": "read later, evicted",
    "resident_growth": "resident set grows",
    "highest_growth": "at most by",
}
ACCURACY_TOLERANCE = 0.01


@dataclass
class Report:
    """What one run of the benchmark found.

    `settings` say how it ran; `rounds[name]` are the measurements of each cold start, `accuracy[name]` a share, and
    `under_limit[name]` the measurements under the memory limit, or why there are none.
    """

    settings: dict[str, Any]
    rounds: dict[str, list[dict[str, float]]]
    accuracy: dict[str, float] = field(default_factory=dict)
    under_limit: dict[str, dict[str, float] | str] = field(default_factory=dict)

    def medians(self) -> dict[str, dict[str, float]]:
        """The median of every measurement, by competitor."""
        return {name: {key: median(one[key] for one in runs) for key in runs[0]} for name, runs in self.rounds.items()}

    def reference(self) -> str | None:
        """The sti_hf that answers first of those within a point of the accuracy of float32 (of all, if not known)."""
        medians = self.medians()
        ours = [name for name in medians if name.startswith(STI)]
        if FP32 in self.accuracy:
            wanted = self.accuracy[FP32] - ACCURACY_TOLERANCE
            ours = [name for name in ours if self.accuracy[name] >= wanted]
        return min(ours, key=lambda name: medians[name]["ttfa"], default=None)

    def ratios(self) -> dict[str, dict[str, float]]:
        """Each competitor's medians over those of the reference; empty where there is none."""
        reference, medians = self.reference(), self.medians()
        if reference is None:
            return {}
        ours = medians[reference]
        return {name: {key: values[key] / ours[key] for key in RATIOS} for name, values in medians.items()}

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        found = {"medians": self.medians(), "reference": self.reference(), "ratios": self.ratios()}
        return {**vars(self), **found}

    def markdown(self) -> str:
        """Two tables for people."""
        lines = [f"{name}: {value}  " for name, value in self.settings.items()]
        lines += ["", "Medians; TTFA with the fastest and the slowest round in brackets. Milliseconds, MB (10^6).", ""]
        columns = ["", *(TITLES[key] for key in (*MILLISECONDS, *MEGABYTES)), "accuracy", "under the memory limit"]
        lines.append(table(columns, [self._row(name, values) for name, values in self.medians().items()]))
        if ratios := self.ratios():
            lines += ["", f"Times as much as {self.reference()}:", ""]
            rows = [[name, *(f"{values[key]:.2f}" for key in RATIOS)] for name, values in ratios.items()]
            lines.append(table(["", *(TITLES[key] for key in RATIOS)], rows))
        return "\n".join(lines)

    def _row(self, name: str, values: dict[str, float]) -> list[str]:
        all_ttfa = [one["ttfa"] * 1e3 for one in self.rounds[name]]
        ttfa = f"{values['ttfa'] * 1e3:.0f} ({min(all_ttfa):.0f}–{max(all_ttfa):.0f})"
        others = [f"{values[key] * 1e3:.0f}" for key in MILLISECONDS if key != "ttfa"]
        megabytes = [f"{values[key] / 1e6:.1f}" for key in MEGABYTES]
        accuracy = f"{self.accuracy[name]:.1%}" if name in self.accuracy else "–"
        return [name, ttfa, *others, *megabytes, accuracy, self._survival(name)]

    def _survival(self, name: str) -> str:
        if name not in self.under_limit:
            return "–"
        found = self.under_limit[name]
        return found if isinstance(found, str) else f"answers in {found['ttfa'] * 1e3:.0f}"
