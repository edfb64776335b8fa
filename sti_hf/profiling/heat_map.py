"""A picture of what shards are worth."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import numpy as np

from sti_hf.errors import ConfigurationError
from sti_hf.profiling.examples import MISSING_EXTRA
from sti_hf.shards.whole import write_whole

CELL = 0.35
"""Inches of a shard's side."""


def check_matplotlib() -> None:
    """Raises `ValueError` where matplotlib is not installed."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ConfigurationError(MISSING_EXTRA.format("matplotlib")) from error


def save_heat_map(path: Path, worth: np.ndarray, title: str, unit: str) -> None:
    """Writes a PNG of a matrix `[N, M]`: a row for every layer, the first on top, a column for every slice."""
    check_matplotlib()
    from matplotlib.figure import Figure

    layers, slices = worth.shape
    figure = Figure(figsize=(slices * CELL + 2.2, layers * CELL + 1.6), layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(worth, cmap="viridis", aspect="equal")
    axes.set(xlabel="slice, as in the checkpoint", ylabel="layer", title=title)
    axes.set_xticks(range(0, slices, -(-slices // 16)))
    axes.set_yticks(range(0, layers, -(-layers // 16)))
    figure.colorbar(image, label=unit)
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=150)
    write_whole(path, picture.getvalue())
