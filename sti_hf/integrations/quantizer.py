"""sti among the quantization methods of Transformers, so that it knows a store's `config.json`.

It is not with this that a store is loaded (see `from_pretrained`): Transformers comes here where it has taken a folder
or a repository for a checkpoint, and it is a store.
"""

from __future__ import annotations

from typing import Any, NoReturn

from transformers.quantizers import HfQuantizer, register_quantization_config, register_quantizer

from sti_hf.config import STIConfig
from sti_hf.errors import StoreError


@register_quantizer("sti")
class STIHfQuantizer(HfQuantizer):
    """Says how a store is loaded."""

    def __new__(cls, *arguments: Any, **named: Any) -> NoReturn:
        """Raises `StoreError`."""
        raise StoreError(
            "This model is a store of sti_hf: import sti_hf, and give from_pretrained its folder, or its Hub id "
            "with sti_config=."
        )


register_quantization_config("sti")(STIConfig)
