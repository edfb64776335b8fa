"""Nested codes chosen with error feedback, for all fidelities at once.

Error feedback (GPTQ, Frantar et al., 2022) rounds the weights of a row one after another, and moves what a rounding
does to the row's outputs into the weights still to come. Here every weight has one code, of which each fidelity reads
a prefix. So each fidelity with feedback keeps its own moved weights, and the code is the one of least summed error
over all fidelities: a code that serves 2 bits alone would leave 4 bits no value near the weight.

Codes that are there are bettered by descent: one weight after another takes the code that is best now that all the
others have theirs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sti_hf.shards.layout import PLANES

DAMPING = 0.01
"""Added to the diagonal of second moments, in units of its mean: inputs that never vary stay harmless."""

BLOCK_COLUMNS = 32
"""Columns between which errors are fed back one by one; those after the block get them in one product."""


def feedback_codes(
    weights: Tensor,
    scales: Tensor,
    codebooks: Mapping[int, Tensor],
    moments: Mapping[int, Tensor],
    error_weights: Mapping[int, float],
    is_outlier: Tensor,
) -> Tensor:
    """Codes uint8 `[groups, rows, columns]` of weights whose outputs are sums over columns.

    Args:
        weights: float32 `[groups, rows, columns]`; errors are fed back within a row.
        scales: float32, broadcastable to `weights`.
        codebooks: for each fidelity float32 `[groups, 2**bits]`.
        moments: second moments of the inputs, float32 `[groups or 1, columns, columns]`, for each fidelity that takes
            part in the feedback; the others are held against the weights as they are.
        error_weights: what a fidelity's squared error counts for.
        is_outlier: bool, as `weights`: those that are kept exactly, whatever their code.
    """
    order = next(iter(moments.values())).diagonal(dim1=-2, dim2=-1).mean(0).argsort(descending=True)
    factor = _stacked({bits: each[:, order][:, :, order] for bits, each in _distinct(moments).items()}, _factor_of)
    original, scales, is_outlier = (
        _by_column(each.expand_as(weights)[..., order]) for each in (weights, scales, is_outlier)
    )
    others = [bits for bits in codebooks if bits not in moments]
    search = CodeSearch(codebooks, error_weights, [*moments, *others])
    moved = original.repeat(len(moments), 1, 1, 1)
    codes = torch.empty(original.shape, dtype=torch.uint8)
    columns = original.shape[1]
    for start in range(0, columns, BLOCK_COLUMNS):
        end = min(columns, start + BLOCK_COLUMNS)
        errors = torch.empty(*moved.shape[:2], end - start, moved.shape[3])
        for column in range(start, end):
            weight, scale, now = original[:, column], scales[:, column], moved[:, :, column]
            fixed = (weight / scale).expand(len(others), -1, -1)
            code = search(torch.cat((now / scale, fixed)))
            codes[:, column] = code
            values = search.values(code, len(moments)).mul_(scale)
            error = (now - torch.where(is_outlier[:, column], weight, values)).div_(factor[:, :, column, column, None])
            errors[:, :, column - start] = error
            if column + 1 < end:
                moved[:, :, column + 1 : end] -= factor[:, :, column, column + 1 : end, None] * error[:, :, None]
        if end < columns:
            moved[:, :, end:] -= factor[:, :, start:end, end:].transpose(-1, -2) @ errors
    return codes[:, order.argsort()].transpose(1, 2).contiguous()


def descend(
    codes: Tensor,
    weights: Tensor,
    scales: Tensor,
    codebooks: Mapping[int, Tensor],
    moments: Mapping[int, Tensor],
    error_weights: Mapping[int, float],
    is_outlier: Tensor,
) -> Tensor:
    """`codes` of a no greater error, after one round of descent. Arguments as in `feedback_codes`; a fidelity without
    `moments` has no say.
    """
    original, scales, is_outlier, codes = (
        _by_column(each.expand_as(weights)) for each in (weights, scales, is_outlier, codes)
    )
    moment = _stacked(_distinct(moments), lambda each: each)
    diagonal = moment.diagonal(dim1=-2, dim2=-1).clamp_min(1e-30)
    search = CodeSearch(codebooks, error_weights, list(moments))
    values = search.values(codes.flatten(1).long(), len(moments)).view(-1, *codes.shape).mul_(scales)
    values = torch.where(is_outlier, original, values)
    slopes = moment @ (original - values)
    columns = original.shape[1]
    for start in range(0, columns, BLOCK_COLUMNS):
        end = min(columns, start + BLOCK_COLUMNS)
        changes = torch.empty(*values.shape[:2], end - start, values.shape[3])
        for column in range(start, end):
            weight, scale, now = original[:, column], scales[:, column], values[:, :, column]
            targets = (slopes[:, :, column] / diagonal[:, :, column, None]).add_(now).div_(scale)
            code = search(targets)
            codes[:, column] = code
            value = torch.where(is_outlier[:, column], weight, search.values(code, len(moments)).mul_(scale))
            change = changes[:, :, column - start] = value - now
            if column + 1 < end:
                slopes[:, :, column + 1 : end] -= moment[:, :, column, column + 1 : end, None] * change[:, :, None]
        if end < columns:
            slopes[:, :, end:] -= moment[:, :, end:, start:end] @ changes
    return codes.transpose(1, 2).contiguous()


class CodeSearch:
    """Finds the codes 0 .. 63 of least squared error summed over `fidelities`.

    `codebooks` float32 `[groups, 2**bits]`, `error_weights` what a fidelity's error counts for.
    """

    def __init__(
        self, codebooks: Mapping[int, Tensor], error_weights: Mapping[int, float], fidelities: Sequence[int]
    ) -> None:
        tables = [codebooks[bits].repeat_interleave(2 ** (PLANES - bits), 1) for bits in fidelities]
        self._tables = torch.stack(tables)
        weighted = self._tables * torch.tensor([error_weights[bits] for bits in fidelities])[:, None, None]
        # The square of (target - value), without the target's own square, which is the same for all codes.
        self._squares = (weighted * self._tables).sum(0)[..., None]
        self._products = -2 * weighted.permute(1, 2, 0)

    def __call__(self, targets: Tensor) -> Tensor:
        """Codes int64 `[groups, rows]`. `targets` float32 `[fidelities, groups, rows]`: what each should come to, in
        units of the codebook.
        """
        cost = torch.baddbmm(self._squares, self._products, targets.transpose(0, 1))
        least = [cost]  # of all codes that begin with each prefix
        while cost.shape[1] > 2:
            cost = torch.minimum(cost[:, 0::2], cost[:, 1::2])
            least.append(cost)
        code = (least[-1][:, 1] < least[-1][:, 0]).long()
        for cost in least[-2::-1]:
            low, high = cost.gather(1, torch.stack((2 * code, 2 * code + 1), 1)).unbind(1)
            code = 2 * code + (high < low)
        return code

    def values(self, codes: Tensor, count: int) -> Tensor:
        """Codebook values float32 `[count, groups, ..]` of the first fidelities for `codes` int64 `[groups, ..]`."""
        return self._tables[:count].gather(2, codes.expand(count, *codes.shape))


def _by_column(tensor: Tensor) -> Tensor:
    """`[groups, rows, columns]` as `[groups, columns, rows]`: a column is one piece of memory."""
    return tensor.transpose(1, 2).contiguous()


def _distinct(moments: Mapping[int, Tensor]) -> Mapping[int, Tensor]:
    """One of them, if all fidelities have the same."""
    return dict(list(moments.items())[:1]) if len({id(each) for each in moments.values()}) == 1 else moments


def _stacked(moments: Mapping[int, Tensor], change: Callable[[Tensor], Tensor]) -> Tensor:
    """`[fidelities or 1, groups or 1, columns, columns]`, changed."""
    return torch.stack([change(each) for each in moments.values()])


def _factor_of(moment: Tensor) -> Tensor:
    """Upper Cholesky factor of the inverse of the damped second moments, float32 `[groups, columns, columns]`."""
    moment = moment.double()
    mean = moment.diagonal(dim1=-2, dim2=-1).mean(-1)
    mean = torch.where(mean > 0, mean, 1.0)
    damped = moment + torch.diag_embed((DAMPING * mean)[:, None].expand(moment.shape[:2]))
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(damped))
    return torch.linalg.cholesky(inverse, upper=True).float()
