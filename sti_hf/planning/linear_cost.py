"""What linears cost whose layers were not measured: those over a vocabulary."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sti_hf.planning.cost import DeviceProfile


def linear_profile(profile: DeviceProfile, layer_weights: int, slices: int, slice_weights: int) -> DeviceProfile:
    """The profile of layers that are one linear each, of so many slices: as long as it takes, in proportion to its
    weights, to multiply by one of the layers that `profile` is of, which has `layer_weights`."""
    per_weight = np.array(profile.layer_seconds)[:, -1:] / layer_weights
    weights = slice_weights * np.arange(1, slices + 1)
    nothing = (0.0,) * len(profile.tokens)
    return replace(
        profile,
        widths=tuple(range(1, slices + 1)),
        layer_seconds=tuple(map(tuple, (per_weight * weights).tolist())),
        pairs=(1,),
        attention_seconds=(0.0,),
        before_seconds=nothing,
        after_seconds=nothing,
    )
