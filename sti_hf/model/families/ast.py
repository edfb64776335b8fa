"""The Audio Spectrogram Transformer: ViT, on what is heard."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sti_hf.model.families.towers import ViT

if TYPE_CHECKING:
    from torch import Tensor
    from transformers import PreTrainedConfig


class AudioSpectrogramTransformer(ViT):
    """A spectrogram in the place of an image: frames by frequencies, in patches that overlap."""

    model_types = ("audio-spectrogram-transformer",)
    main_inputs = ("input_values",)

    def other_tokens(self, config: PreTrainedConfig) -> int:
        """Tokens of a spectrogram that are no patches: of the class, and of distillation."""
        return 2

    def longest_input(self, config: PreTrainedConfig) -> int:
        """Tokens of a spectrogram of the size that the configuration names."""
        return self._tokens(config, config.max_length, config.num_mel_bins)

    def shape_of(self, config: PreTrainedConfig, inputs: Mapping[str, Any]) -> tuple[int, int] | None:
        """Batch, and tokens of each spectrogram, of `input_values` `[batch, frames, frequencies]`."""
        shape = tuple(getattr(inputs.get("input_values"), "shape", ()))
        return (shape[0], self._tokens(config, *shape[1:])) if len(shape) == 3 else None

    def example_inputs(self, config: PreTrainedConfig, batch: int, tokens: int) -> dict[str, Tensor]:
        """Random spectrograms of the size that the configuration names."""
        import torch

        return {"input_values": torch.randn(batch, config.max_length, config.num_mel_bins)}

    def _tokens(self, config: PreTrainedConfig, frames: int, frequencies: int) -> int:
        times = (frames - config.patch_size) // config.time_stride + 1
        return times * ((frequencies - config.patch_size) // config.frequency_stride + 1) + self.other_tokens(config)
