"""The measurements as a figure: time to the first answer, later forwards, memory."""

from __future__ import annotations

from pathlib import Path

from eval.coldstart.report import Report


def plot(report: Report, path: Path) -> None:
    """Draws three panels of bars, one bar a competitor, and saves them as the format that `path` ends with."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    medians = report.medians()
    names = list(medians)
    values = {key: [medians[name][key] for name in names] for key in next(iter(medians.values()))}
    figure, (first, later, memory) = pyplot.subplots(
        1, 3, figsize=(13, 0.6 + 0.4 * len(names)), sharey=True, layout="constrained"
    )
    spread = [[one["ttfa"] for one in report.rounds[name]] for name in names]
    below = [total - min(each) for total, each in zip(values["ttfa"], spread)]
    above = [max(each) - total for total, each in zip(values["ttfa"], spread)]
    before = [total - forward for total, forward in zip(values["ttfa"], values["first_forward"])]
    first.barh(names, before, color="#8da0cb", label="until the model is loaded")
    first.barh(names, values["first_forward"], left=before, color="#fc8d62", label="first forward")
    first.errorbar(values["ttfa"], names, xerr=[below, above], fmt="none", ecolor="black", capsize=2)
    first.set(title=f"first answer ({report.settings['cold start']})", xlabel="seconds")
    rows = range(len(names))
    later.barh([row - 0.2 for row in rows], values["warm_forward"], 0.4, color="#66c2a5", label="warm")
    later.barh([row + 0.2 for row in rows], values["evicted_forward"], 0.4, color="#e78ac3", label="files evicted")
    later.set(title="later forwards", xlabel="seconds", xscale="log")
    memory.barh(names, [value / 1e6 for value in values["resident_growth"]], color="#a6d854")
    memory.set(title="growth of the resident set", xlabel="MB")
    first.invert_yaxis()
    for panel in (first, later):
        panel.legend(fontsize="small")
    figure.suptitle(f"{report.settings['model']}, {report.settings['disk']}, {report.settings['tokens']} tokens")
    figure.savefig(path, dpi=150)
    pyplot.close(figure)
