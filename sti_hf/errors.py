"""What can go wrong, told apart by class. Every error has one sentence: what was wrong, and what to do.

All derive from `STIError`, and each from the built-in error that Python would raise for it, so that code which knows
nothing of sti_hf can catch it too. `sti_hf.native.StreamError` is one of them.
"""

from __future__ import annotations


class STIError(Exception):
    """The base of all errors that sti_hf raises on purpose."""


class ConfigurationError(STIError, ValueError, TypeError):
    """A value that was asked for makes no sense."""


class InputError(STIError, ValueError, IndexError):
    """A model was called with what it cannot take."""


class UnsupportedModelError(STIError, ValueError):
    """The model is not of a supported family, or uses a part of its family that is not supported."""


class UnsupportedUseError(STIError, RuntimeError):
    """A model that runs from its store was used in a way that only a model with weights in memory allows."""


class WeightInStoreError(UnsupportedUseError, AttributeError):
    """A weight was asked for that is in the store, and never in memory as a whole."""


class SourceError(STIError, ValueError):
    """A checkpoint, dataset or text is damaged, incomplete, or not what was asked for."""


class SourceNotFoundError(SourceError, FileNotFoundError):
    """There is no such checkpoint."""


class StoreError(STIError, ValueError):
    """The folder is not a store, or its content is not what the store's index says."""


class StoreReplacedError(StoreError):
    """The store was moved, removed or rewritten after it was opened."""


class StoreExistsError(StoreError, FileExistsError):
    """There is something of that name already."""


class ProfileError(STIError, ValueError):
    """A device or importance profile is damaged, of another version, or of another store."""


class PlanError(STIError, ValueError):
    """There is no plan for what was asked."""


class InfeasibleLatencyError(PlanError):
    """No plan meets the target latency, and the configuration is strict."""


class LoadingError(STIError):
    """`transformers.pipeline` could not load its model, for the reason that `__cause__` is.

    Not one of Python's own errors: those it answers with another class of models, which nobody asked for.
    """


class SessionClosedError(STIError, RuntimeError):
    """The session of this model was closed."""
