"""Fidelities by kind of matrix: which matrices are raised first, and what the model is then worth."""
