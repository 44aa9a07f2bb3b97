"""Choice of draft size and lookahead by gradient, held against exact searches; and of all else, as a constrained program."""

from sdsl_jax.codesign.break_even import BreakEven, Speculation, best_speculation, break_even
from sdsl_jax.codesign.fronts import Front, GridOptimum, brute_force, pareto
from sdsl_jax.codesign.optimise import OPTIMIZERS, GradientOptimum, maximise, spread_starts
from sdsl_jax.codesign.program import (
    METRICS,
    Program,
    ProgramInputs,
    Solved,
    solve,
    solve_many,
    stack,
    sweep,
)
from sdsl_jax.codesign.rounding import Rounded, round_design
from sdsl_jax.codesign.sensitivity import DesignSensitivities, sensitivities
from sdsl_jax.codesign.stage import Solution, cost_models, solve_all

__all__ = [
    "METRICS",
    "OPTIMIZERS",
    "BreakEven",
    "DesignSensitivities",
    "Front",
    "GradientOptimum",
    "GridOptimum",
    "Program",
    "ProgramInputs",
    "Rounded",
    "Solution",
    "Solved",
    "Speculation",
    "best_speculation",
    "break_even",
    "brute_force",
    "cost_models",
    "maximise",
    "pareto",
    "round_design",
    "sensitivities",
    "solve",
    "solve_all",
    "solve_many",
    "spread_starts",
    "stack",
    "sweep",
]
