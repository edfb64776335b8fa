"""The modules that stand in a stock model for its own: lazy ones without weights, and guarded ones that keep order."""
