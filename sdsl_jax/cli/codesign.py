"""`sdsl codesign`: which draft and lookahead to serve a target with, on which hardware, under which constraints."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from sdsl_jax.cli.arguments import Flag
from sdsl_jax.cli.codesign_report import print_answer, question
from sdsl_jax.cli.terminal import error_console, print_json, standard_console
from sdsl_jax.config.codesign_problem import ProblemFlags
from sdsl_jax.errors import require


def codesign(
    problem: Annotated[ProblemFlags, OmitArgPrefixes],
    picture: Annotated[Path | None, arg(metavar="FILE.png")] = None,
    json: Flag = False,
) -> None:
    """Which draft and lookahead should I use for my target on my hardware?

    Solved by gradient over any of draft size, lookahead, batch, training tokens, shape and target
    size, for any mix of speed, latency and cost, under constraints. Sizes are in the count of the
    loss law (total parameters, for the published ones but Kaplan's), and counts may be written 70e9
    or 70B. A file holds the whole problem (docs/codesign.md); flags override it.

    For a drafting head (EAGLE, Medusa, MTP), which no law here describes, measure its acceptance
    length and ask sdsl lookahead --acceptance-length.

    Args:
        problem: The problem, from a file, flags or both.
        picture: Draw speed-up over draft size and lookahead to this file.
        json: Print JSON.
    """
    if picture is not None:
        require(picture.suffix == ".png", f"cannot draw {picture}: its name must end in .png.")
    from sdsl_jax.codesign.problem import Problem

    asked = Problem(**vars(problem))
    config = asked.ready.config
    # Nothing appears where the errors do not go to a terminal.
    with error_console().status(
        "solving; compiling takes up to a minute for a new kind of problem"
    ):
        answer = asked.solve()
    if picture is not None:
        from sdsl_jax.report.codesign_figure import draw_landscape

        draw_landscape(asked.landscape(answer), answer, question(config), picture)
    if json:
        print_json(answer)
        return
    print_answer(standard_console(), answer, config)
