"""`sdsl codesign`: which draft and lookahead to serve a target with, on which hardware, under which constraints."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, arg

from sdsl_jax.cli.arguments import Flag
from sdsl_jax.cli.codesign_report import print_answer, question
from sdsl_jax.cli.options import Topic
from sdsl_jax.cli.terminal import error_console, print_json, standard_console
from sdsl_jax.config.problem_flags import ProblemFlags
from sdsl_jax.errors import require


def _of_sections(*sections: str) -> tuple[str, ...]:
    """The flags that set something in these sections of a problem file."""
    keys = {f.name: f.metadata.get("keys", f.name) for f in dataclasses.fields(ProblemFlags)}
    return tuple(name for name, key in keys.items() if key.partition(".")[0] in sections)


TOPICS = (
    Topic(
        "target", "The model that is served: section [target] of a file.", _of_sections("target")
    ),
    Topic("draft", "The draft: section [draft].", _of_sections("draft")),
    Topic("hardware", "The devices: section [hardware].", _of_sections("hardware")),
    Topic("workload", "What is asked of the server: section [workload].", _of_sections("workload")),
    Topic(
        "objective",
        "What to choose, and what for: sections [objective], [constraints] and [variables].",
        _of_sections("objective", "constraints", "variables"),
    ),
    Topic("law", "Where loss and acceptance come from: section [laws].", _of_sections("laws")),
)


def codesign(
    problem: Annotated[ProblemFlags, OmitArgPrefixes],
    schedule: Flag = False,
    survival: Annotated[str, arg(metavar="S1,S2,...")] = "",
    records: Annotated[Path | None, arg(metavar="DIR")] = None,
    mix: Annotated[str, arg(metavar="DOMAIN=SHARE,...")] = "",
    picture: Annotated[Path | None, arg(metavar="FILE.png")] = None,
    kinds: Annotated[str | None, arg(metavar="KINDS")] = None,
    objective_trained: Annotated[str | None, arg(metavar="NAME")] = None,
    study: Annotated[Path | None, arg(metavar="DIR")] = None,
    json: Flag = False,
) -> None:
    """Which draft and lookahead should I use for my target on my hardware?

    The command optimises any of draft size, lookahead, batch, training tokens, shape and target
    size by gradient, for any mix of speed, latency and cost, under constraints. Sizes are in the
    count of the loss law (total parameters, for the published laws except Kaplan's), and counts may
    be written 70e9 or 70B. A file can hold the whole problem (docs/codesign.md); flags override it.

    No law here describes drafting heads (EAGLE, Medusa, MTP). For one of those, measure its
    acceptance length and give it to sdsl lookahead --acceptance-length. To compare kinds of draft
    that a study measured, use --kinds with --study; a problem is not needed then.

    Args:
        problem: The problem, from a file, flags or both.
        schedule: For the one --draft at hand, show the best lookahead of every --batch and --context
            (0: do not speculate) and a table by batch for vLLM and SGLang.
        survival: With --schedule, the measured shares of rounds whose first 1, 2, ... drafts are
            all accepted, such as 0.8,0.62,0.47, in place of one acceptance.
        records: With --schedule, a folder of sdsl measure --out that holds survival or acceptance.
        mix: With --schedule, shares of the generated tokens by domain, such as code=0.5,chat=0.5.
            Acceptance is then that of each domain: --acceptance code=0.8,chat=0.6, or --records of
            these domains.
        picture: Draw speed-up over draft size and lookahead to this file; with --schedule, the best
            lookahead over batch and context.
        kinds: Show the best draft of each of these kinds instead: independent, head, parallel-head,
            table-head, early-exit, early-exit-trained, pruned, nested, separated by commas.
        objective_trained: With --kinds, only drafts that were trained for this objective, such as tv.
        study: With --kinds, the folder of the study that measured them.
        json: Print JSON.
    """
    if kinds is not None:
        from sdsl_jax.cli.codesign_kinds import kinds_of_study, print_kinds

        given = [name for name, value in vars(problem).items() if value not in (None, (), False)]
        require(
            picture is None and not given,
            "--kinds compares drafts that a study measured; it takes no problem and draws no picture.",
        )
        answer_of_kinds = kinds_of_study(kinds, objective_trained, study)
        if json:
            print_json(answer_of_kinds)
        else:
            names = [name.strip() for name in kinds.split(",") if name.strip()]
            print_kinds(standard_console(), answer_of_kinds, names, objective_trained)
        return
    require(
        study is None and objective_trained is None,
        "--study and --objective-trained belong to --kinds; a problem takes its laws from --loss-law and --acceptance-law.",
    )
    if picture is not None:
        require(picture.suffix == ".png", f"cannot draw {picture}: its name must end in .png.")
    from sdsl_jax.codesign.problem import Problem

    if schedule:
        from sdsl_jax.cli.codesign_schedule import print_schedule, schedule_of

        table = schedule_of(problem, survival, records, mix)
        if picture is not None:
            from sdsl_jax.report.codesign_figure import draw_schedule

            draw_schedule(table, picture)
        if json:
            print_json(table)
        else:
            print_schedule(standard_console(), table)
        return
    require(
        not survival and records is None and not mix,
        "--survival, --records and --mix belong to --schedule; otherwise acceptance comes from --acceptance or a law.",
    )
    if len(problem.batches) > 1:
        require(picture is None, "--picture draws one batch; give --batch one number of rows.")
        from sdsl_jax.cli.codesign_schedule import print_batches

        answers = {
            batch: Problem(**vars(problem) | {"batch": batch}).solve() for batch in problem.batches
        }
        if json:
            print_json(list(answers.values()))
        else:
            print_batches(standard_console(), answers)
        return
    asked = Problem(**vars(problem))
    config, device = asked.ready.config, asked.ready.hardware.display_name
    # Nothing appears where the errors do not go to a terminal.
    with error_console().status(
        "solving; compiling takes up to a minute for a new kind of problem"
    ):
        answer = asked.solve()
    if picture is not None:
        from sdsl_jax.report.codesign_figure import draw_landscape

        draw_landscape(asked.landscape(answer), answer, question(config, device), picture)
    if json:
        print_json(answer)
        return
    print_answer(standard_console(), answer, config, device)
