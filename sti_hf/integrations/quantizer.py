"""sti as a quantization method of Transformers: a store's `config.json` names it, and this loads it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from transformers import PreTrainedModel
from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer
from transformers.utils import logging

from sti_hf.config import STIConfig
from sti_hf.errors import StoreError
from sti_hf.runtime.session import STISession

logger = logging.get_logger(__name__)

_session: ContextVar[STISession | None] = ContextVar("sti_session", default=None)


@contextmanager
def loading(session: STISession) -> Iterator[None]:
    """The session that the model being loaded in this block will run from."""
    token = _session.set(session)
    try:
        yield
    finally:
        _session.reset(token)


def is_loading() -> bool:
    """Whether a session is waiting for its model."""
    return _session.get() is not None


@register_quantizer("sti")
class STIHfQuantizer(HfQuantizer):
    """Puts the elastic modules into the model before its (resident) weights are loaded, and attaches the session."""

    requires_calibration = False

    def __init__(self, quantization_config: STIConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        session = _session.get()
        if session is None:
            raise StoreError(
                "This model is a store of sti_hf: import sti_hf, and give from_pretrained its folder, or its Hub id "
                "with sti_config=."
            )
        self.session = session

    def _process_model_before_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        self.session.attach(model)
        if model.all_tied_weights_keys:
            names = {name for name, _ in model.named_parameters()}
            model.all_tied_weights_keys = {
                target: source for target, source in model.all_tied_weights_keys.items() if {target, source} <= names
            }
        return model

    def _process_model_after_weight_loading(self, model: PreTrainedModel, **kwargs: Any) -> PreTrainedModel:
        model.config.quantization_config = self.session.config
        setattr(model, "sti", self.session)  # noqa: B010 - mypy takes modules' attributes for tensors
        return model

    def update_parallel_plan(self, model: PreTrainedModel, plan: dict[str, str]) -> None:
        """Nothing is added to it: shards have no parameters. Transformers would look for some all over the model."""

    def _convert_model_for_quantization(self, model: PreTrainedModel) -> None:
        """Nothing is converted: Transformers' list of modules to convert has none for this method."""

    def is_serializable(self) -> bool:
        logger.warning(f"This model's weights are in its store: to save the model, copy {self.session.store.path}.")
        return False

    @property
    def is_trainable(self) -> bool:
        return False


register_quantization_config("sti")(STIConfig)
