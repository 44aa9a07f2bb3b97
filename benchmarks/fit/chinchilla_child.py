"""The package `chinchilla` (PyPI), in a process of its own and often in an environment of its own. Imports no jax."""

from __future__ import annotations

import functools
import tempfile
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.child import serve


class Peer:
    """Fits one table."""

    def __init__(self) -> None:
        import chinchilla

        self._package = chinchilla

    def versions(self) -> dict[str, str]:
        """Of the package and of scipy."""
        return {name: metadata.version(name) for name in ("chinchilla", "scipy", "numpy")}

    def fit(
        self, params: list[float], tokens: list[float], loss: list[float], delta: float | None
    ) -> dict[str, Any]:
        """64 starts over the ranges that its documentation gives.

        Args:
          params: N.
          tokens: D.
          loss: L.
          delta: of its Huber loss on ln L; its default, an asymmetric absolute error, if None.
        """
        from chinchilla._metrics import asymmetric_mae, log_huber

        with tempfile.TemporaryDirectory() as folder:
            rows = [
                f"{6 * n * d!r},{n!r},{d!r},{value!r}" for n, d, value in zip(params, tokens, loss)
            ]
            (Path(folder) / "df.csv").write_text("\n".join(["C,N,D,loss", *rows]) + "\n")
            fitter = self._package.Chinchilla(
                folder,
                param_grid=dict(
                    E=np.linspace(1, 2, 2),
                    a=np.linspace(1, 10, 4),
                    b=np.linspace(1, 10, 2),
                    alpha=np.linspace(0.1, 0.7, 2),
                    beta=np.linspace(0.1, 0.7, 2),
                ),
                loss_fn=asymmetric_mae
                if delta is None
                else functools.partial(log_huber, delta=delta),
                log_level=50,
            )
            fitter.visualizer.optim = lambda *arguments, **settings: (
                None
            )  # its figure is no part of the fit
            began = time.perf_counter()
            fitter.fit()
            seconds = time.perf_counter() - began
        found = [float(getattr(fitter, name)) for name in ("E", "A", "B", "alpha", "beta")]
        return {"seconds": seconds, "coefficients": found}


if __name__ == "__main__":
    serve(Peer)
