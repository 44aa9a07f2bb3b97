"""`sdsl explore`: a page in the browser on which a slider moves the answer."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, UseAppendAction, arg

from sdsl_jax.cli.arguments import Flag
from sdsl_jax.cli.codesign import TOPICS as TOPICS
from sdsl_jax.cli.terminal import Terminal, error_console, say, standard_console
from sdsl_jax.config.problem_flags import ProblemFlags
from sdsl_jax.errors import require


def explore(
    problem: Annotated[ProblemFlags, OmitArgPrefixes],
    study: Annotated[Path | None, arg(metavar="DIR")] = None,
    export: Annotated[Path | None, arg(metavar="PAGE.html")] = None,
    grid: Annotated[tuple[str, ...], UseAppendAction, arg(metavar="CONTROL=VALUE,...")] = (),
    port: int = 0,
    no_browser: Flag = False,
) -> None:
    """Move the sliders: which draft, and how far ahead, for which target on which hardware?

    Opens a page of this machine in your browser. It shows speed-up over draft size and lookahead,
    the best lookahead of every load, the time of a round, what would move the choice, and the
    command line and engine settings of what you see. Flags set where the page opens. Its state is
    in the address, to be shared. Ctrl-C ends it.

    --export writes a page that needs neither server nor network, for a grid of states.

    Args:
        problem: Where the page opens.
        study: Folder of a study: its laws, its device and its models, with the points that it
            measured.
        export: Write one HTML file to this path instead.
        grid: With --export, the values of a control that the file holds, such as batch=1,8,64; may
            be repeated. Controls that are not named stay where they are.
        port: Port of the page on this machine; any free one by default.
        no_browser: Print the address without opening a browser.
    """
    from sdsl_jax.explore.explorer import Explorer

    console = standard_console()
    flags = {n: v for n, v in vars(problem).items() if not (v is None or v is False or v == ())}
    require(
        not grid or export is not None,
        "--grid names what a file holds; it belongs to --export PAGE.html.",
    )
    require(
        study is None or not flags,
        "--study opens with the study's own laws, device and models; it takes no other flags of a problem.",
    )
    if export is None:
        from sdsl_jax.explore.serve import require_marimo, serve

        require_marimo()
    explorer = Explorer.of_flags(flags) if study is None else Explorer.of_study(study)
    if export is None:
        serve(
            explorer,
            port,
            not no_browser,
            lambda address: say(console, f"The explorer is at {address}. Ctrl-C ends it."),
        )
        return
    from sdsl_jax.explore.export import export as write

    count = write(explorer, export, _grid(grid), Terminal(error_console()))
    size = export.stat().st_size / 1e6
    say(
        console,
        f"{export}: {count} states, {size:.1f} MB. It opens in any browser, without a server or a network.",
    )


def _grid(texts: tuple[str, ...]) -> dict[str, list[str]] | None:
    """CONTROL=VALUE,VALUE...; none for a grid around the start."""
    grid: dict[str, list[str]] = {}
    for text in texts:
        name, mark, values = text.partition("=")
        name = name.strip().replace("-", "_")
        require(
            bool(mark and values) and name not in grid,
            f"--grid is {text!r}; it must be of the form batch=1,8,64, each control once.",
        )
        grid[name] = [value.strip() for value in values.split(",") if value.strip()]
    return grid or None
