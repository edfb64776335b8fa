"""The calibrated quantizer: nested codes that follow the model's own activations on a few hundred texts, no labels.

Layer after layer, codes are chosen with error feedback for all fidelities at once (`error_feedback`), codebooks and
row scales are fitted to the outputs (`least_squares`), on inputs as the quantized layers before give them. The few
weights that carry most of an output stay exact (`outliers`). At the end the row scales of the lowest fidelities are
tuned against the full model (`scale_tuning`).

Of a language model, tokens count for what their errors cost the prediction (`fisher_moments`), codes are bettered in
some more rounds, scales are tuned towards the full model's next tokens (`objectives`), and there is a quantizer for
the vocabulary too (`vocabulary`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from torch import Tensor

from sti_hf.errors import SourceError
from sti_hf.model import get_architecture
from sti_hf.model.fused import in_parts
from sti_hf.model.grid import Grid
from sti_hf.model.layer_runner import Inputs
from sti_hf.shards.quantizers.base import QuantizedLayer, Quantizer, collect_outliers
from sti_hf.shards.quantizers.calibrated.calibration import Calibration
from sti_hf.shards.quantizers.calibrated.fitted_files import digest_of, load_fitted
from sti_hf.shards.quantizers.calibrated.nested_fit import BITS
from sti_hf.shards.quantizers.calibrated.scratch import Scratch
from sti_hf.shards.quantizers.lloyd import LloydQuantizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class CalibratedQuantizer:
    """A `ModelQuantizer` for the shards of the one model that it was calibrated on. Made by `calibrate`.

    `vocabulary` is one for strips of the rows of the linear over a language model's vocabulary; other models' is not
    calibrated.
    """

    def __init__(
        self, scratch: Scratch, slice_indices: Sequence[dict[bytes, int]], vocabulary: Quantizer | None
    ) -> None:
        self._scratch = scratch
        self._slice_indices = slice_indices
        self._vocabulary = vocabulary or LloydQuantizer()

    @property
    def vocabulary(self) -> Quantizer:
        """See `ModelQuantizer`."""
        return self._vocabulary

    def quantize_layer(self, layer: int, shards: Tensor, grid: Grid) -> QuantizedLayer:
        """See `Quantizer`. Slices may come in any order: each is known by its weights.

        Raises `ValueError` for a shard that is not of the calibrated model.
        """
        known = self._slice_indices[layer] if layer < len(self._slice_indices) else {}
        digests = [digest_of(shard) for shard in shards]
        if not all(digest in known for digest in digests):
            raise SourceError(f"Layer {layer} is not of the model that was calibrated; calibrate on this model.")
        order = [known[digest] for digest in digests]
        fitted = load_fitted(self._scratch, layer)
        return QuantizedLayer(
            grid,
            codes=fitted.codes[order],
            codebooks={bits: fitted.codebooks[bits][order] for bits in BITS},
            scales={bits: fitted.scales[bits][order].clamp(1e-7, 6e4).half() for bits in BITS},
            outliers=tuple(
                collect_outliers(shard, fitted.is_outlier[index], grid) for shard, index in zip(shards, order)
            ),
        )


def calibrate(
    model: PreTrainedModel,
    batches: Sequence[Inputs],
    *,
    tuning_steps: int | None = None,
    seed: int = 0,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> CalibratedQuantizer:
    """Fits the nested codes of a model's shards to what it computes on calibration text.

    Args:
        model: its weights change while this runs, and are the same afterwards.
        batches: tokenized texts, padded, as the model's forward takes them; 512 texts in batches of some 500 tokens
            are plenty, and for a language model windows of running text. No labels.
        tuning_steps: steps of gradient descent on the row scales, a batch each: 0 takes less time and is less
            accurate. None: some passes over all batches.
        seed: of the order in which batches are drawn. The same seed and thread count give the same codes.
        progress: called now and then with the work done since, and the work that there is in all.

    Raises:
        ValueError: there are no batches, or the weights are not float32.
        UnsupportedModelError: see `get_architecture`.
    """
    if not batches:
        raise SourceError("There is no calibration text; give at least one batch, better a few hundred sentences.")
    architecture = get_architecture(model.config)
    with in_parts(model, architecture):
        calibration = Calibration(model, architecture, architecture.grid(model.config), batches)
        made = calibration.run(tuning_steps, seed, progress)
    return CalibratedQuantizer(made.scratch, made.slice_indices, made.vocabulary)
