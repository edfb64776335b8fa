"""Which of a model's layers a submodel keeps."""

from __future__ import annotations

DEPTH_RULE = "first"
"""Name of the rule that `kept_layers` follows, as stores record it."""


def kept_layers(layers: int, depth: int) -> tuple[int, ...]:
    """Which of a model's `layers` a submodel of `depth` keeps: the first.

    The one definition that planning, the runtime, profiling and elastic training follow. The first, because then all
    depths of a width are parts of one forward: training and profiling run it once for all of them, and the preload
    buffer, which holds the start of the model, serves every depth. A model has to be trained for another rule.
    """
    return tuple(range(min(layers, depth)))
