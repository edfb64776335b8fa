"""`transformers.pipeline` while it loads its model: it hands no `sti_config` on, and goes on after errors."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any


def pipeline_arguments() -> dict[str, Any] | None:
    """The further arguments of the call of `transformers.pipeline` that is loading a model in this thread, or None.

    `pipeline` passes them to nobody before the model is loaded. They are looked up in its frame: a wrapper around it
    would not reach those who have imported it before sti_hf. Changing them changes them for `pipeline`.
    """
    pipelines = sys.modules.get("transformers.pipelines")
    if pipelines is None:
        return None
    code = pipelines.pipeline.__code__
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and frame.f_code is not code:
        frame = frame.f_back
    return None if frame is None else frame.f_locals["kwargs"]
