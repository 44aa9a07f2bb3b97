"""Laws, throughput, costs and optima: pure functions on coefficients, on jax and numpy alone."""

from sdsl_jax.theory.costs import (
    CostModel,
    FlopCost,
    MeasuredCost,
    ShapeRule,
    StepTimeLaw,
    flops_per_token,
    layers_and_width,
)
from sdsl_jax.theory.laws import (
    ACCEPTANCE_LAWS,
    BESIROGLU,
    PAPER_PLANE,
    AcceptanceLaw,
    AffinePlane,
    ChinchillaLaw,
    LogitGap,
)
from sdsl_jax.theory.lookahead import (
    LookaheadOptimum,
    acceptance_from_tokens_per_round,
    optimal_lookahead,
    solve_branch,
    speedup,
    tokens_per_round,
)
from sdsl_jax.theory.optima import DraftOptimum, optimal_draft

__all__ = [
    "ACCEPTANCE_LAWS",
    "BESIROGLU",
    "PAPER_PLANE",
    "AcceptanceLaw",
    "AffinePlane",
    "ChinchillaLaw",
    "CostModel",
    "DraftOptimum",
    "FlopCost",
    "LogitGap",
    "LookaheadOptimum",
    "MeasuredCost",
    "ShapeRule",
    "StepTimeLaw",
    "acceptance_from_tokens_per_round",
    "flops_per_token",
    "layers_and_width",
    "optimal_draft",
    "optimal_lookahead",
    "solve_branch",
    "speedup",
    "tokens_per_round",
]
