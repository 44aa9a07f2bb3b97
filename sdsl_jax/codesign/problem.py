"""A co-design problem to be asked and answered from Python: `Problem(target_params=70e9).solve()`."""

from __future__ import annotations

import functools
import inspect
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from sdsl_jax.codesign.answer import Answer, solve
from sdsl_jax.codesign.designs import Landscape, landscape
from sdsl_jax.codesign.serving_problem import ServingProblem, build
from sdsl_jax.config.problem_flags import ProblemFlags
from sdsl_jax.theory.serving import Design


@dataclass(frozen=True, kw_only=True, repr=False)
class Problem(ProblemFlags):
    """Which draft and lookahead to serve a target with, on given hardware.

        Problem(target_params="70B", hardware="h100", devices=4, batch=8).solve()

    The keyword arguments are the flags of `sdsl codesign`, and what is left out has the same default.
    """

    @classmethod
    def from_file(cls, path: str | Path, **flags: Any) -> Problem:
        """The problem that a TOML file describes; flags override the file.

        Raises:
          SdslError: when the problem is solved, if the file cannot be read or holds a bad value.
        """
        return cls(file=Path(path), **flags)

    @functools.cached_property
    def ready(self) -> ServingProblem:
        """The problem as it is solved, with laws and device loaded.

        Raises:
          SdslError: a value is not allowed, or a law or device cannot be loaded.
        """
        return build(self.config())

    def solve(self) -> Answer:
        """The best draft, lookahead and whatever else is variable, with alternatives and warnings.

        Compiling takes up to a minute for a new kind of problem.

        Raises:
          SdslError: a value is not allowed, or the laws give nothing finite for this target.
        """
        return solve(self.ready)

    def landscape(self, answer: Answer) -> Landscape:
        """Speed-up over draft size and lookahead around an answer, for a picture."""
        values = vars(answer.design)
        sizes = {name: values[name].non_embedding for name in ("draft_params", "target_params")}
        return landscape(self.ready, Design(**values | sizes))

    def __repr__(self) -> str:
        flags = {f.name: getattr(self, f.name) for f in fields(self)}
        shown = [
            f"{name}={value!r}"
            for name, value in flags.items()
            if value is not False and value not in (None, ())
        ]
        return f"Problem({', '.join(shown)})"


def _describe(problem: type[Problem]) -> None:
    """Gives `help` the flags as they are called, each with what it means.

    As annotations they carry how a command line reads and shows them.
    """
    flags = inspect.signature(ProblemFlags).parameters.values()
    plain = [flag.replace(annotation=flag.empty) for flag in flags]
    itself = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
    vars(problem)["__init__"].__signature__ = inspect.Signature([itself, *plain])
    setattr(problem, "__signature__", inspect.Signature(plain))  # noqa: B010
    _, _, meanings = (ProblemFlags.__doc__ or "").partition("by the flags of `sdsl codesign`.")
    problem.__doc__ = (problem.__doc__ or "").rstrip() + meanings


_describe(Problem)
