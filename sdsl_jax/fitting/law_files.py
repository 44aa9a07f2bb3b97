"""Laws by name or from a file, with whatever uncertainty came with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.counts import short_count
from sdsl_jax.errors import SdslError, require
from sdsl_jax.records import read_json
from sdsl_jax.theory import (
    ACCEPTANCE_LAWS,
    LOSS_LAWS,
    PUBLISHED_ACCEPTANCE_LAWS,
    PUBLISHED_LOSS_LAWS,
    About,
    draws_from_covariance,
)
from sdsl_jax.user_files import reason

# Draws from a covariance matrix: enough for the ends of a 90% interval to be known to a few percent
# of its width.
_DRAWS = 1000


class LoadedLaw(NamedTuple):
    """A law that was asked for.

    Attributes:
      name: as it was asked for.
      law: its coefficients and what they are about.
      draws: the same law with arrays of draws, or None.
      basis: what the draws are, or why there are none.
      joint: the file whose joint draws these are; draws of laws from one file belong together.
      warnings: that came with the law.
    """

    name: str
    law: Any
    draws: Any
    basis: str
    joint: Path | None
    warnings: list[str]


def loss_law(name: str) -> LoadedLaw:
    """A published loss law by name, or a fitted one from a JSON file.

    Raises:
      SdslError: there is no such law, or the file holds none.
    """
    return _load(name, "loss", PUBLISHED_LOSS_LAWS, LOSS_LAWS)


def acceptance_law(name: str) -> LoadedLaw:
    """A published acceptance law by name, or a fitted one from a JSON file.

    A file that holds several gives its first, which is the best; `FILE.json#NAME` asks for another.

    Raises:
      SdslError: there is no such law, or the file holds none.
    """
    return _load(name, "acceptance", PUBLISHED_ACCEPTANCE_LAWS, ACCEPTANCE_LAWS)


def _load(name: str, kind: str, published: dict[str, Any], forms: dict[str, type]) -> LoadedLaw:
    if name in published:
        law = published[name]
        return LoadedLaw(name, law, None, law.about.no_interval, None, [])
    # A file may have a # in its name; what follows the last one is the name of a law only where it
    # can be none of a file.
    file, mark, wanted = name.rpartition("#")
    if not mark or Path(name).exists():
        file, wanted = name, ""
    path = Path(file)
    require(
        path.suffix == ".json" or path.exists(),
        f"{name} is no {kind} law; it must be one of {', '.join(published)}, or a JSON file that holds a fitted one.",
    )
    contents = read_json(path, dict)
    # The results of a study hold all laws; a file of its own holds one.
    if "loss_law" in contents or "acceptance_laws" in contents:
        held = [contents.get("loss_law")] if kind == "loss" else contents.get("acceptance_laws")
    else:
        held = [contents]
    held = [law for law in (held if isinstance(held, list) else []) if isinstance(law, dict)]
    if mark and file != name:
        present = [str(law.get("law")) for law in held]
        require(
            wanted in present,
            f"{path} holds no {kind} law named '{wanted}'; it holds {', '.join(present) or 'none'}.",
        )
        held = [law for law in held if law.get("law") == wanted]
    found = held[0] if held else {}
    form = str(found.get("law"))
    for key in ("params_count", "text"):
        require(isinstance(found.get(key, ""), str), f"{path} holds a {key} that is no string.")
    require(
        form in forms,
        f"{path} holds no {kind} law: its field law is {form}, and must be one of {', '.join(forms)}.",
    )
    try:
        about = About(
            source=str(path),
            params_count=found.get("params_count", "non-embedding"),
            text=found.get("text", About.text),
            valid=_ranges(found.get("valid", {}), kind, path),
            r_squared=_number(found.get("r_squared")),
            # Residuals of loss laws are those of logarithms.
            mean_squared_error=None
            if kind == "loss" or (error := _number(found.get("rmse"))) is None
            else error**2,
            count=None if (count := _number(found.get("n"))) is None else int(count),
        )
        values = {k: float(v) for k, v in found["coefficients"].items()}
        law = forms[form](**values, about=about)
        require(
            all(np.isfinite(v) for v in values.values()),
            f"{path} holds a coefficient that is not finite.",
        )
        draws, basis, joint = None, about.no_interval, None
        if found.get("draws"):
            draws = forms[form](
                **{k: np.asarray(found["draws"][k], float) for k in values}, about=about
            )
            shapes = {np.shape(x) for x in jax.tree.leaves(draws)}
            finite = all(np.isfinite(x).all() for x in jax.tree.leaves(draws))
            require(
                len(shapes) == 1 and len(min(shapes)) == 1 and min(shapes)[0] > 1 and finite,
                f"{path} holds draws that cannot be used: each coefficient needs a list of the same number of finite values.",
            )
            basis, joint = str(found.get("interval_basis", "draws of the coefficients")), path
        elif found.get("covariance"):
            with jax.enable_x64(True):
                draws = draws_from_covariance(
                    law,
                    jnp.asarray(found["covariance"]),
                    _DRAWS,
                    jax.random.key(int(kind == "loss")),
                )
            basis = f"{_DRAWS} normal draws from the covariance of the coefficients"
        warnings = found.get("warnings", [])
        return LoadedLaw(
            name,
            law,
            draws,
            basis,
            joint,
            [str(w) for w in (warnings if isinstance(warnings, list) else [warnings])],
        )
    except SdslError:
        raise
    except (LookupError, TypeError, AttributeError, ValueError, ArithmeticError) as error:
        raise SdslError(f"{path} does not hold a usable {kind} law ({reason(error)}).") from None


def _number(value: Any) -> float | None:
    """A number of a law's quality; None where the file does not tell it, or tells no number."""
    return float(value) if isinstance(value, int | float) and np.isfinite(value) else None


def quality(law: LoadedLaw) -> str:
    """How well an acceptance law describes the pairs that it was fitted to, in words."""
    about, parts = law.law.about, []
    if about.r_squared is not None:
        parts.append(f"R² = {about.r_squared:.3g}")
    if about.mean_squared_error is not None:
        parts.append(f"a root mean square error of {about.mean_squared_error**0.5:.2g} in α")
    if not parts:
        return f"how well the acceptance law {law.name} describes its pairs is not known"
    pairs = (
        "pairs whose number is not published" if about.count is None else f"{about.count:,} pairs"
    )
    return f"the acceptance law {law.name} has {' and '.join(parts)}, over {pairs}"


def moves(law: LoadedLaw, small: Any, alpha: Any, large: Any, alpha_of_large: Any) -> str:
    """How far an acceptance law moves α between drafts of two sizes, in words."""
    return (
        f"from a draft of {short_count(float(small))} to one of {short_count(float(large))} parameters the acceptance law "
        f"{law.name} moves α from {float(alpha):.3f} to {float(alpha_of_large):.3f}"
    )


# Beyond this a suffix was probably forgotten, or a unit mistaken.
_FAR = 1000.0


def far_outside(loss: LoadedLaw, acceptance: LoadedLaw, **stated: dict[str, float]) -> list[str]:
    """One sentence on sizes and training tokens that lie more than a thousand times outside what
    the laws were fitted on.

    Args:
      loss: the loss law.
      acceptance: the acceptance law.
      stated: of draft and target, by role: params and tokens, or one of them.
    """
    found = []
    for role, values in stated.items():
        factors = loss.law.about.times_outside(**values)
        if "params" in values:
            of_size = acceptance.law.about.times_outside(**{f"{role}_params": values["params"]})
            factors["params"] = max([1.0, factors.get("params", 1.0), *of_size.values()])
        found += [
            f"{short_count(values[name])} {'parameters' if name == 'params' else 'training tokens'} of the {role} "
            f"({factor:,.0f} times)"
            for name, factor in factors.items()
            if factor > _FAR
        ]
    if not found:
        return []
    return [
        f"far outside what the laws were fitted on: {', '.join(found)}; is a suffix missing, as in 70 for 70B?"
    ]


# What a law may be given a range of.
_VARIABLES = {
    "loss": ("params", "tokens"),
    "acceptance": ("draft_params", "target_params", "draft_loss", "target_loss"),
}


def _ranges(
    valid: dict[str, Any], kind: str, path: Path
) -> tuple[tuple[str, float, float], ...] | None:
    for name in valid:
        require(
            name in _VARIABLES[kind],
            f"{path} gives a range of {name}; the range of {kind} laws may be given in {', '.join(_VARIABLES[kind])}.",
        )
    return tuple((name, float(low), float(high)) for name, (low, high) in valid.items()) or None
