"""Laws by name or from a file, with whatever uncertainty came with them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

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

# Draws from a covariance matrix: enough for the ends of a 90 % interval to be known to a few percent of its width.
_DRAWS = 1000


class LoadedLaw(NamedTuple):
    """A law that was asked for.

    Attributes:
      name: as it was asked for.
      law: its coefficients and what they are about.
      draws: the same law with arrays of draws, or None.
      basis: what the draws are, or why there are none.
      warnings: that came with the law.
    """

    name: str
    law: Any
    draws: Any
    basis: str
    warnings: list[str]


def loss_law(name: str) -> LoadedLaw:
    """A published loss law by name, or a fitted one from a JSON file.

    Raises:
      SdslError: there is no such law, or the file holds none.
    """
    return _load(name, "loss", PUBLISHED_LOSS_LAWS, LOSS_LAWS)


def acceptance_law(name: str) -> LoadedLaw:
    """A published acceptance law by name, or a fitted one from a JSON file.

    Raises:
      SdslError: there is no such law, or the file holds none.
    """
    return _load(name, "acceptance", PUBLISHED_ACCEPTANCE_LAWS, ACCEPTANCE_LAWS)


def _load(name: str, kind: str, published: dict[str, Any], forms: dict[str, type]) -> LoadedLaw:
    if name in published:
        law = published[name]
        return LoadedLaw(name, law, None, law.about.no_interval, [])
    path = Path(name)
    require(
        path.suffix == ".json" or path.exists(),
        f"{name} is no {kind} law; it must be one of {', '.join(published)}, or a JSON file that holds a fitted one.",
    )
    contents = read_json(path, dict)
    # The results of a study hold all laws; a file of its own holds one.
    if "loss_law" in contents or "acceptance_laws" in contents:
        found = contents.get("loss_law") if kind == "loss" else next(iter(contents.get("acceptance_laws", [])), None)
    else:
        found = contents
    found = found if isinstance(found, dict) else {}
    form = str(found.get("law"))
    require(
        form in forms, f"{path} holds no {kind} law: its field law is {form}, and must be one of {', '.join(forms)}."
    )
    try:
        about = About(
            source=str(path),
            params_count=found.get("params_count", "non-embedding"),
            text=found.get("text", About.text),
            valid=tuple((k, float(low), float(high)) for k, (low, high) in found.get("valid", {}).items()) or None,
        )
        values = {k: float(v) for k, v in found["coefficients"].items()}
        law = forms[form](**values, about=about)
        require(all(np.isfinite(v) for v in values.values()), f"{path} holds a coefficient that is not finite.")
        draws, basis = None, about.no_interval
        if found.get("draws"):
            draws = forms[form](**{k: np.asarray(found["draws"][k], float) for k in values}, about=about)
            basis = found.get("interval_basis", "draws of the coefficients")
        elif found.get("covariance"):
            with jax.enable_x64(True):
                draws = draws_from_covariance(law, jnp.asarray(found["covariance"]), _DRAWS, jax.random.key(0))
            basis = f"{_DRAWS} normal draws from the covariance of the coefficients"
        return LoadedLaw(name, law, draws, basis, [str(w) for w in found.get("warnings", [])])
    except SdslError:
        raise
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise SdslError(f"{path} does not hold a usable {kind} law ({error}).") from None
