"""What the native part raises beside the built-in errors."""

from __future__ import annotations

from sti_hf.errors import STIError


class StreamError(STIError, RuntimeError):
    """A read failed, or what was read is not what was written."""


class Cancelled(STIError, RuntimeError):
    """The run waited for was cancelled."""
