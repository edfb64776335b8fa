from __future__ import annotations

import warnings

import numpy as np
import pytest

from sti_hf.runtime.timeline import RunTimeline
from sti_hf.runtime.watch import INFERENCES, MISSES, Watch


def run(total: float, predicted: float = 0.1, target_latency: float = 0.2) -> RunTimeline:
    nothing = np.empty(0)
    return RunTimeline(
        9, total, 0.0, 0, 0, nothing, nothing, nothing, nothing, nothing, nothing, predicted, target_latency
    )


def warned(runs: list[RunTimeline]) -> list[str]:
    watch = Watch()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for each in runs:
            watch.note(each)
    return [str(warning.message) for warning in caught]


def test_inferences_as_promised_are_no_warning() -> None:
    assert not warned([run(0.1), run(0.14), run(0.07)] * 10)


@pytest.mark.parametrize("total", [0.3, 0.22, 0.02])
def test_one_warning_names_what_to_do(total: float) -> None:
    predicted = 0.19 if total > 0.2 else 0.1
    messages = warned([run(total, predicted)] * 20)
    assert len(messages) == 1
    assert "sti profile-device STORE" in messages[0]
    assert "\n" not in messages[0]


def test_few_slow_inferences_are_no_warning() -> None:
    assert not warned([*[run(0.3)] * (MISSES - 1), *[run(0.1)] * INFERENCES, *[run(0.3)] * (MISSES - 1)])


def test_a_target_that_no_plan_keeps_was_announced_when_it_was_planned() -> None:
    assert not warned([run(0.31, predicted=0.3)] * 20)


def test_a_plan_without_a_prediction_is_not_judged() -> None:
    assert not warned([run(5.0, predicted=0.0)] * 20)


def test_a_run_says_whether_it_kept_the_target() -> None:
    assert run(0.2).kept_target
    assert not run(0.21).kept_target
