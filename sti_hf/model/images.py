"""What a model is called with that sees images."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


class ImageInputs:
    """For an `Architecture`: images in the place of texts. An image is as many tokens as it has patches, and some."""

    tables: ClassVar[Mapping[str, str]] = {}
    main_inputs: ClassVar[tuple[str, ...]] = ("pixel_values",)
    exact_tokens: ClassVar[bool] = True

    def other_tokens(self, config: PreTrainedConfig) -> int:
        """Tokens of an image that are no patches."""
        raise NotImplementedError

    def longest_input(self, config: PreTrainedConfig) -> int:
        """Tokens of an image of the size that the configuration names."""
        return self._tokens(config, *_pair(config.image_size))

    def bounds_positions(self, config: PreTrainedConfig) -> bool:
        """Models interpolate positions, or say themselves that an image has another size."""
        return False

    def shape_of(self, config: PreTrainedConfig, inputs: Mapping[str, Any]) -> tuple[int, int] | None:
        """Batch, and tokens of each image, of `pixel_values` `[batch, channels, height, width]`."""
        shape = tuple(getattr(inputs.get("pixel_values"), "shape", ()))
        if len(shape) == 4:
            return shape[0], self._tokens(config, *shape[2:])
        states = tuple(getattr(inputs.get("hidden_states"), "shape", ()))  # where a base model has no embeddings
        return states[:2] if len(states) == 3 else None

    def example_inputs(self, config: PreTrainedConfig, batch: int, tokens: int) -> dict[str, Tensor]:
        """Random images of the size that the configuration names."""
        import torch

        return {"pixel_values": torch.randn(batch, config.num_channels, *_pair(config.image_size))}

    def _tokens(self, config: PreTrainedConfig, height: int, width: int) -> int:
        rows, columns = _pair(config.patch_size)
        return (height // rows) * (width // columns) + self.other_tokens(config)


def _pair(size: int | tuple[int, int]) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else (size[0], size[1])
