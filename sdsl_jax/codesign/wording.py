"""Names in words of everything that a design depends on, and the sensitivities that matter, told by them."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np

from sdsl_jax.codesign.program import Program, Solved
from sdsl_jax.codesign.sensitivity import DesignSensitivities

VARIABLES = {
    "draft_params": "draft size",
    "lookahead": "lookahead",
    "batch": "batch",
    "draft_tokens": "training tokens of the draft",
    "aspect_ratio": "aspect ratio of the draft",
    "target_params": "target size",
}
METRICS = {
    "seconds_per_token": "seconds per token",
    "cost_per_million_tokens": "cost per million tokens",
    "latency_seconds": "latency of a request",
    "first_token_seconds": "time to the first token",
    "total_cost": "cost of training the draft and serving the volume",
    "memory_bytes": "memory of a device",
    "training_flops": "training FLOPs of the draft",
    "training_cost": "training cost of the draft",
    "draft_loss": "loss of the draft",
    "target_loss": "loss of the target",
}
# By the path of a number within `Serving`.
_QUANTITIES = {
    "hardware.pass_seconds": "overhead per pass",
    "hardware.layer_seconds": "overhead per layer",
    "hardware.token_seconds": "overhead per token",
    "hardware.matrix_seconds": "overhead per layer of several tokens",
    "hardware.logit_seconds": "drawing per token and vocabulary entry",
    "hardware.cache_slowdown": "speed of caches against weights",
    "hardware.bytes_per_second": "memory bandwidth",
    "hardware.flops_per_second": "arithmetic throughput",
    "hardware.round_seconds": "overhead per round",
    "hardware.link_bytes_per_second": "bandwidth between devices",
    "hardware.link_seconds": "latency between devices",
    "hardware.memory_bytes": "memory of a device",
    "hardware.price_per_hour": "price of a device",
    "loss_law.E": "irreducible loss E",
    "loss_law.A": "scale A of size in the loss law",
    "loss_law.B": "scale B of data in the loss law",
    "loss_law.a": "exponent a of size in the loss law",
    "loss_law.b": "exponent b of data in the loss law",
    "loss_law.N_c": "scale N_c of size in the loss law",
    "loss_law.D_c": "scale D_c of data in the loss law",
    "loss_law.alpha_N": "exponent α_N of size in the loss law",
    "loss_law.alpha_D": "exponent α_D of data in the loss law",
    "acceptance_law.level": "level of the acceptance law",
    "acceptance_law.slope": "slope of the acceptance law in the loss gap",
    "acceptance_law.draft_slope": "slope of the acceptance law in the draft's loss",
    "acceptance_law.target_slope": "slope of the acceptance law in the target",
    "acceptance_law.A": "slope A of the acceptance law in the draft's perplexity",
    "acceptance_law.B": "slope B of the acceptance law in the target's perplexity",
    "acceptance_law.C": "constant C of the acceptance law",
    "acceptance_law.scale": "scale of the acceptance law",
    "acceptance_law.exponent": "exponent of draft size in the acceptance law",
    "acceptance_law.target_exponent": "exponent of target size in the acceptance law",
    "acceptance_law.params_slope": "slope of the acceptance law in draft size",
    "acceptance_law.tokens_slope": "slope of the acceptance law in the draft's data",
    "draft_family.aspect_ratio": "aspect ratio of the draft's family",
    "draft_family.vocab_size": "vocabulary of the draft",
    "draft_family.kv_share": "key-value share of the draft",
    "draft_shape.params": "draft size outside embeddings",
    "draft_shape.layers": "layers of the draft",
    "draft_shape.width": "width of the draft",
    "draft_shape.query_width": "width of the draft's queries",
    "draft_shape.kv_width": "width of the draft's keys and values",
    "draft_shape.vocab_size": "vocabulary of the draft",
    "target_family.aspect_ratio": "aspect ratio of the target",
    "target_family.vocab_size": "vocabulary of the target",
    "target_family.kv_share": "key-value share of the target",
    "target_tokens": "training tokens of the target",
    "draft_params": "draft size outside embeddings",
    "target_params": "target size outside embeddings",
    "context": "context",
    "prompt_tokens": "tokens of a prompt",
    "new_tokens": "new tokens of a request",
    "precision.weight_bytes": "bytes of a weight of the target",
    "precision.cache_bytes": "bytes of a cache element of the target",
    "draft_precision.weight_bytes": "bytes of a weight of the draft",
    "draft_precision.cache_bytes": "bytes of a cache element of the draft",
    "devices": "devices",
    "draft_devices": "devices of the draft",
    "aspect_penalty": "penalty on the draft's shape",
    "volume_tokens": "tokens to be served",
    "training_utilisation": "utilisation in training",
    "prefill_share": "share of prefills here",
}


def quantity(path: str) -> str:
    """A number of `Serving` or of a fixed part of `Design`, in words."""
    return _QUANTITIES.get(path) or VARIABLES.get(path) or path.replace("_", " ").replace(".", ", ")


def _flat(tree: Any) -> dict[str, float]:
    """Leaves by their dotted paths."""
    leaves = jax.tree_util.tree_flatten_with_path(tree)[0]
    return {"".join(str(part) for part in path).lstrip("."): float(value) for path, value in leaves}


def ranked_sensitivities(
    program: Program, solved: Solved, found: DesignSensitivities, errors: dict[str, float]
) -> list[dict[str, Any]]:
    """Elasticities of all variables and of the objective by every number that either depends on,
    what matters most first.

    They are ranked by the largest elasticity among the variables, or by that of the objective where
    all rest on bounds.

    Args:
      program: that was solved.
      solved: its optimum.
      found: its sensitivities.
      errors: standard errors relative to the number, by path, where there are any.
    """
    tables = {
        name: _flat(found.variables[name]) | _flat(found.variables_fixed[name])
        for name in program.variables
    }
    gains = _flat(found.objective) | {
        name: value
        for name, value in _flat(found.objective_fixed).items()
        if name not in program.variables
    }
    # Nobody has 1% more embedding tables, a roofline of another corner, or more than all of the
    # prefills.
    fixed = ("embedding_tables", "sharpness", "prefill_share")
    gains = {path: value for path, value in gains.items() if not path.endswith(fixed)}
    held = bool(np.all(np.asarray(solved.at_lower) | np.asarray(solved.at_upper)))

    def weight(path: str) -> float:
        values = [gains[path]] if held else [table[path] for table in tables.values()]
        return max(abs(v) if np.isfinite(v) else 0.0 for v in values)

    ranked = sorted(gains, key=weight, reverse=True)

    def number(value: float) -> float | None:
        return value if np.isfinite(value) else None

    def per_error(path: str) -> dict[str, float | None] | None:
        if path not in errors:
            return None
        return {name: number(errors[path] * tables[name][path]) for name in program.variables}

    return [
        {
            "quantity": quantity(path),
            "path": path,
            "elasticity": {name: number(tables[name][path]) for name in program.variables},
            "elasticity_of_objective": number(gains[path]),
            "logarithms_per_standard_error": per_error(path),
        }
        for path in ranked
        if weight(path) > 0 or abs(gains[path]) > 0
    ]


def relative_errors(**laws: Any) -> dict[str, float]:
    """Published standard errors of the coefficients of laws, relative to the coefficients, by their paths within `Serving`."""
    return {
        f"{kind}_law.{name}": error / abs(float(getattr(law, name)))
        for kind, law in laws.items()
        for name, error in law.about.standard_error
    }
