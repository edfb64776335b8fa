"""`transformers.pipeline` while it loads its model: it hands no `sti_config` on, and goes on after errors."""

from __future__ import annotations

import functools
import sys
from types import FrameType
from typing import Any

from sti_hf.errors import ConfigurationError


def pipeline_arguments() -> dict[str, Any] | None:
    """The further arguments of the call of `transformers.pipeline` for which the caller loads a model, or None.

    `pipeline` passes them to nobody before the model is loaded. They are looked up in its frame: a wrapper around it
    would not reach those who have imported it before sti_hf. Changing them changes them for `pipeline`. A load inside
    of another (of the checkpoint that is sharded) is not for the pipeline.
    """
    frame = _frame_of_pipeline(sys._getframe(1))
    arguments: dict[str, Any] | None = None if frame is None else frame.f_locals["kwargs"]
    return arguments


def refuse_late_configuration() -> None:
    """Teaches pipelines, once Transformers has loaded them, to refuse a `sti_config` that has come to nobody.

    They would ignore it: where `pipeline` is given a model that is loaded already.
    """
    base = sys.modules.get("transformers.pipelines.base")
    if base is None or hasattr(base.Pipeline.__init__, "_refuses_sti_config"):
        return
    stock = base.Pipeline.__init__

    @functools.wraps(stock)
    def __init__(self: Any, model: Any, *args: Any, **kwargs: Any) -> None:
        frame = _frame_of_pipeline(sys._getframe())
        model_kwargs = {} if frame is None or hasattr(model, "sti") else frame.f_locals.get("model_kwargs") or {}
        if kwargs.get("sti_config") is not None or model_kwargs.get("sti_config") is not None:
            raise ConfigurationError(
                "sti_config is for a model that the pipeline loads, and this one is loaded already: give it to the "
                "model's from_pretrained, or name the model by its folder or id."
            )
        stock(self, model, *args, **kwargs)

    __init__._refuses_sti_config = True  # type: ignore[attr-defined]
    base.Pipeline.__init__ = __init__


def _frame_of_pipeline(caller: FrameType) -> FrameType | None:
    """That of the call of `pipeline` from which the caller is called, unless by way of the caller's own function."""
    pipelines = sys.modules.get("transformers.pipelines")
    if pipelines is None:
        return None
    frame = caller.f_back
    while frame is not None and frame.f_code is not caller.f_code:
        if frame.f_code is pipelines.pipeline.__code__:
            return frame
        frame = frame.f_back
    return None
