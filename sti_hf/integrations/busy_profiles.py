"""Device profiles of a busy machine, in files of the cache beside the others: good for an hour, and marked as such."""

from __future__ import annotations

import json
from contextlib import suppress
from pathlib import Path

from sti_hf.errors import ProfileError
from sti_hf.integrations.cache_files import keep_file
from sti_hf.planning import DeviceProfile

GOOD_FOR = 3600.0
"""Seconds for which such a profile is used, rather than measuring again on a machine that may still be busy."""

WARNING = (
    "The machine was busy while this device was profiled, so the profile is used for an hour only and measured again "
    "then."
)


def busy_path(path: Path) -> Path:
    """Where a profile of a busy machine is kept that would be at `path`, had the machine been free."""
    return path.with_name(f"{path.stem}-busy.json")


def keep_busy(path: Path, profile: DeviceProfile, now: float) -> bool:
    """Keeps a profile that was measured `now` (`time.time`); returns whether the cache took it."""
    content = {"busy": True, "measured": now, "profile": json.loads(profile.to_json())}
    return keep_file(busy_path(path), json.dumps(content, indent=2))


def busy_profile(text: str, now: float) -> DeviceProfile | None:
    """The profile in such a file's text; None where its hour is over, or has not begun by this clock.

    Raises `ProfileError` where the text is none that `keep_busy` wrote.
    """
    try:
        content = json.loads(text)
        measured, profile = float(content["measured"]), content["profile"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ProfileError("It is not a profile of a busy machine.") from error
    return DeviceProfile.from_json(json.dumps(profile)) if 0 <= now - measured < GOOD_FOR else None


def drop_busy(path: Path) -> None:
    """Takes it away, now that there is a better one."""
    with suppress(OSError):
        busy_path(path).unlink()
