"""The page: one HTML file with its data, scripts and Plotly inside, which needs no network."""

from __future__ import annotations

import html
import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from string import Template

from sti_hf.config import STIConfig
from sti_hf.errors import ConfigurationError
from sti_hf.reporting.content import content
from sti_hf.reporting.gather import Report, gather
from sti_hf.reporting.results import read_results
from sti_hf.shards.store import ShardStore
from sti_hf.shards.whole import write_whole

SCRIPTS = ("theme.js", "importance.js", "plan.js", "timeline.js", "tradeoffs.js", "report.js")
"""In the order in which they stand on the page; the last one draws."""


def write_report(store: ShardStore, output: Path, config: STIConfig, results: Sequence[Path] = ()) -> Report:
    """Plans and runs a store on this device, and writes a page that shows it. Takes seconds.

    Args:
        store: to report on.
        output: the HTML file, which is replaced if it is there.
        config: how to plan, as `gather` takes it.
        results: JSON files of `eval/run_glue.py` to show as well.

    Raises `ValueError` with one sentence, before anything is measured, where plotly is not installed, the output has
    no folder, or what the page should show cannot be read.
    """
    plotly = _plotly_script()
    _check_output(output)
    report = gather(store, config, [read_results(path) for path in results])
    write_whole(output, render(report, plotly).encode())
    return report


def render(report: Report, plotly: str) -> str:
    """The page's text. `plotly` is the script of Plotly."""
    folder = files("sti_hf.reporting") / "page"
    data = content(report)
    return Template((folder / "page.html").read_text(encoding="utf-8")).substitute(
        title=html.escape(f"{data['name']}: STI report"),
        style=(folder / "style.css").read_text(encoding="utf-8"),
        # No `<` may end the element: names are whatever a user called a folder.
        data=json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c"),
        plotly=plotly,
        script="\n".join((folder / name).read_text(encoding="utf-8") for name in SCRIPTS),
    )


def _plotly_script() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ConfigurationError(
            'A report needs plotly, which is not installed: pip install "sti-hf[report]".'
        ) from error
    script: str = get_plotlyjs()
    return script


def _check_output(output: Path) -> None:
    if output.is_dir():
        raise ConfigurationError(f"{output} is a folder; name the file to write, such as {output / 'report.html'}.")
    if not output.parent.is_dir():
        raise ConfigurationError(f"There is no folder {output.parent} to write {output.name} into; make it first.")
