"""Whether full fidelity is worth its bytes: one rule, for every importance profile and none."""

from __future__ import annotations

from sti_hf.planning.importance import ImportanceProfile
from sti_hf.planning.submodel import Submodel
from sti_hf.shards.layout import FULL

LEAST_WORTH = 1 / 64
"""What a byte of full weights must win, of what a byte of planes wins on average.

Each bit quarters the error of a uniform quantizer, so that plane 6 wins 4^-3 of what plane 3 does for as many bytes:
the least that a plan pays for when it has time to spare. Full weights, three to five times the bytes of 6 bits, have
to win as much a byte. That is so where 6 bits leave more than some 4 % (16-bit weights) or 9 % (32-bit) of the lowest
fidelity's distortion; of a uniform quantizer they leave 0.4 %."""


def without_wasted_full(submodel: Submodel, importance: ImportanceProfile) -> Submodel:
    """The submodel, its request without full fidelity where that is not worth its bytes.

    Full weights stand in place of the planes. Where they are all that may be used beside the lowest fidelity, they are
    compared with nothing, and stay.
    """
    request = submodel.request
    *planes, highest = request.fidelities
    if highest != FULL or len(planes) < 2:
        return submodel
    bits = (planes[0], planes[-1], FULL)
    lowest, best, full = (importance.distortion(submodel.matrix(submodel.uniform(each))) for each in bits)
    sizes = [int(submodel.pieces.reads(submodel.needed(submodel.uniform(each)))[0].sum()) for each in bits]
    won_by_planes = (lowest - best) / max(sizes[1] - sizes[0], 1)
    won_by_full = (best - full) / max(sizes[2] - sizes[1], 1)
    if won_by_full > 0 and won_by_full >= LEAST_WORTH * won_by_planes:
        return submodel
    return Submodel(request.changed(fidelities=tuple(planes)), submodel.depth, submodel.width)
