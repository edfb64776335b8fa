"""Which half of a split to report on: never one that an importance profile was measured on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

OTHER_HALF = {"first": "second", "second": "first"}


def held_out(profiles: Mapping[str, Mapping[str, Any]], split: str) -> tuple[str, int]:
    """The part of `split` to report on, and the seed of its halves.

    `profiles` are the facts of importance profiles by name. Raises `ValueError` where these leave no half over.
    """
    seen = {name: facts for name, facts in profiles.items() if facts["split"] == split}
    for name, facts in seen.items():
        if facts["part"] not in OTHER_HALF:
            raise ValueError(
                f"The importance profile {name!r} was measured on the whole of split {split}, so there is nothing "
                "left to report on; profile again with `--part first`."
            )
    halves = {(facts["part"], facts["seed"]) for facts in seen.values()}
    if len(halves) > 1:
        raise ValueError(
            f"The importance profiles {', '.join(sorted(seen))} were measured on different halves of split {split}; "
            "choose profiles of one part and seed."
        )
    for part, seed in halves:
        return OTHER_HALF[part], seed
    return "second", 0
