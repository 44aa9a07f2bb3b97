"""Gradient-based choice of draft size and lookahead, checked against the closed form or bracketed roots."""

from sdsl_jax.codesign.optimise import GradientOptimum, maximise, spread_starts
from sdsl_jax.codesign.stage import Solution, cost_models, solve_all

__all__ = ["GradientOptimum", "Solution", "cost_models", "maximise", "solve_all", "spread_starts"]
