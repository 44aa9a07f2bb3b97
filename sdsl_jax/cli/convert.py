"""`sdsl convert`: a measured acceptance in the conventions of other tools."""

from __future__ import annotations

from typing import Annotated

from rich.markup import escape
from rich.table import Column
from tyro.conf import Positional, arg

from sdsl_jax.cli.arguments import Flag
from sdsl_jax.cli.terminal import print_json, standard_console, table

_CONVENTION = arg(metavar="CONVENTION")


def convert(
    value: Annotated[float, Positional, arg(metavar="VALUE")],
    convention: Annotated[str, _CONVENTION],
    lookahead: Annotated[int, arg(metavar="GAMMA")],
    assume_geometric: Flag = False,
    json: Flag = False,
) -> None:
    """What do other tools call this acceptance?

    Converts a value exactly, for rounds of one fixed lookahead that each emit a bonus token.

    Args:
        value: The measured value.
        convention: Its convention, such as vllm_acceptance_length, vllm_acceptance_rate,
            sglang_old_accept_rate, eagle_tau, paper_tar or paper_alpha.
        lookahead: Drafts per round (num_speculative_tokens).
        assume_geometric: Convert acceptance per tested draft as well, which holds only if every
            draft is accepted with the same probability, independently of the others.
        json: Print one JSON object.
    """
    from sdsl_jax.measurement import events

    names = [
        name for name in events.CONVERTIBLE if assume_geometric or name != "per_test_acceptance"
    ]
    answer = {
        name: events.convert(value, convention, name, lookahead, assume_geometric=assume_geometric)
        for name in names
    }
    if json:
        print_json(answer)
        return
    definition = Column("definition and source; a: drafts accepted in a round", overflow="fold")
    rows = []
    for name, converted in answer.items():
        about = events.CONVENTIONS[name]
        rows.append((name, f"{converted:.4g}", escape(f"{about.definition} ({about.source})")))
    title = f"{convention} {value:g} at γ = {lookahead}"
    standard_console().print(table(title, ("convention", "value", definition), rows))
