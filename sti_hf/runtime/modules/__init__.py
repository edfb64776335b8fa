"""The modules that stand in a stock model for its own: lazy ones that hold no weights, and guarded ones that keep order."""
