"""A headless browser: what a page looks like once its scripts have run, and what these complained about."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import NamedTuple

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
VOID = {"meta", "link", "input", "br", "hr", "img"}


@dataclass
class Part:
    """An element that has an id: its attributes, all text inside it, and what stands in the cells of a heat map."""

    attributes: dict[str, str]
    text: str = ""
    cells: list[str] = field(default_factory=list)


class Visit(NamedTuple):
    """A page after its scripts have run: its parts by id, and what was written to the console."""

    parts: dict[str, Part]
    console: list[str]


class _Reader(HTMLParser):
    """Collects the parts of a page."""

    def __init__(self) -> None:
        super().__init__()
        self.parts: dict[str, Part] = {}
        self._open: list[tuple[str, dict[str, str]]] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = {name: value or "" for name, value in attrs}
        if "id" in attributes:
            self.parts[attributes["id"]] = Part(attributes)
        if tag == "text" and self._open[-1][1].get("class") == "heatmap-label":
            for part in self._around():
                part.cells.append(attributes["data-unformatted"])
        if tag not in VOID:
            self._open.append((tag, attributes))

    def handle_endtag(self, tag: str) -> None:
        while self._open and self._open.pop()[0] != tag:
            pass

    def handle_data(self, data: str) -> None:
        for part in self._around():
            part.text += data

    def _around(self) -> list[Part]:
        return [self.parts[attributes["id"]] for _, attributes in self._open if "id" in attributes]


def visit(page: Path, address: str = "", script: str = "") -> Visit:
    """Opens `page` at `address`, a fragment, and runs `script` in it at the end. Skips the test where there is no
    browser."""
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip("no Chromium is installed")
    if script:
        changed = page.with_name(f"changed-{page.name}")
        changed.write_text(page.read_text().replace("</body>", f"<script>{script}</script></body>"))
        page = changed
    profile = page.with_name("browser")
    command = [
        browser,
        *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--enable-logging=stderr"),
        *(f"--user-data-dir={profile}", "--virtual-time-budget=10000", "--dump-dom"),
        f"{page.resolve().as_uri()}{address}",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    reader = _Reader()
    reader.feed(done.stdout)
    console = [line for line in done.stderr.splitlines() if re.search(r"\bCONSOLE\b", line)]
    return Visit(reader.parts, console)
