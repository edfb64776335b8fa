"""`transformers.pipeline` while it loads its model: it hands no `sti_config` on, and goes on after errors."""

from __future__ import annotations

import sys
from types import FrameType
from typing import Any


def pipeline_arguments() -> dict[str, Any] | None:
    """The further arguments of the call of `transformers.pipeline` for which the caller loads a model, or None.

    `pipeline` passes them to nobody before the model is loaded. They are looked up in its frame: a wrapper around it
    would not reach those who have imported it before sti_hf. Changing them changes them for `pipeline`. A load inside
    of another (of the checkpoint that is sharded) is not for the pipeline.
    """
    pipelines = sys.modules.get("transformers.pipelines")
    if pipelines is None:
        return None
    caller = sys._getframe(1)
    frame: FrameType | None = caller.f_back
    while frame is not None and frame.f_code is not caller.f_code:
        if frame.f_code is pipelines.pipeline.__code__:
            arguments: dict[str, Any] = frame.f_locals["kwargs"]
            return arguments
        frame = frame.f_back
    return None
