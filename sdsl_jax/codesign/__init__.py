"""Choice of draft size and lookahead by gradient, held against exact searches; and of all else, as a constrained program."""

from typing import TYPE_CHECKING

from sdsl_jax.lazy_names import lazy_names

if TYPE_CHECKING:
    from sdsl_jax.codesign.break_even import BreakEven, Speculation, best_speculation
    from sdsl_jax.codesign.designs import Rounded, round_design
    from sdsl_jax.codesign.optimise import OPTIMIZERS, spread_starts
    from sdsl_jax.codesign.program import METRICS, Program, ProgramInputs, Solved, solve, sweep
    from sdsl_jax.codesign.sensitivity import DesignSensitivities, sensitivities
    from sdsl_jax.codesign.stage import Solution, solve_all

__all__ = [
    "METRICS",
    "OPTIMIZERS",
    "BreakEven",
    "DesignSensitivities",
    "Program",
    "ProgramInputs",
    "Rounded",
    "Solution",
    "Solved",
    "Speculation",
    "best_speculation",
    "round_design",
    "sensitivities",
    "solve",
    "solve_all",
    "spread_starts",
    "sweep",
]

__getattr__ = lazy_names(
    __name__,
    {
        "break_even": (
            "BreakEven",
            "Speculation",
            "best_speculation",
        ),
        "designs": (
            "Rounded",
            "round_design",
        ),
        "optimise": (
            "OPTIMIZERS",
            "spread_starts",
        ),
        "program": (
            "METRICS",
            "Program",
            "ProgramInputs",
            "Solved",
            "solve",
            "sweep",
        ),
        "sensitivity": (
            "DesignSensitivities",
            "sensitivities",
        ),
        "stage": (
            "Solution",
            "solve_all",
        ),
    },
)
