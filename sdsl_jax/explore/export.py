"""The explorer as one HTML file that needs no server and no network: the views of a grid of states."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdsl_jax.errors import require
from sdsl_jax.explore.explorer import Explorer, part
from sdsl_jax.explore.state import Choices, Control, State, digits, written
from sdsl_jax.explore.view import FEWER_COLUMNS
from sdsl_jax.progress import Progress, Silent
from sdsl_jax.records import write_text
from sdsl_jax.report.html import environment
from sdsl_jax.report.vega import library, script_json
from sdsl_jax.user_files import reading

# The largest page that mail programs and browsers take without complaint.
LARGEST = 8e6
_STATES = 2000


def default_grid(choices: Choices) -> dict[str, tuple[Any, ...]]:
    """The states of a page: a few values of what people ask about first, those of the start among them."""
    start = choices.start
    if len(choices.hardware) == 1 and not any(choices.engines.values()):
        return {
            "target_params": choices.target_params,
            "draft_tokens": choices.draft_tokens,
            "acceptance_law": tuple(choices.acceptance_laws),
            "batch": _thinned((1.0, 4.0, 16.0, 64.0), start.batch),
            "context": _thinned((256.0, 2048.0), start.context),
        }
    others = ("h100", "h200", "a100", "v6e")
    devices = [name for name in others if name in choices.hardware and name != start.hardware]
    return {
        "target_params": _thinned((1e9, 3e9, 8e9, 32e9, 70e9, 400e9), start.target_params),
        "hardware": (start.hardware, *devices[:2]),
        "batch": _thinned((1.0, 4.0, 16.0, 64.0), start.batch),
        "context": _thinned((1024.0, 4096.0, 16384.0), start.context),
    }


def _thinned(values: Sequence[float], own: float) -> tuple[float, ...]:
    return tuple(sorted({*values, own}))


def export(
    explorer: Explorer,
    path: Path,
    grid: Mapping[str, Sequence[Any]] | None = None,
    progress: Progress | None = None,
) -> int:
    """Writes the page.

    Args:
      explorer: The explorer.
      path: The file to write, ending in .html.
      grid: Values of each control that the page holds; a grid around the start if left out. What
        is not named stays as at the start.
      progress: Told of every state that is done.

    Returns:
      Number of states.

    Raises:
      SdslError: The grid names what is no control or not offered, has more than 2,000 states, the
        page is larger than 8 MB or cannot be written, or another file is in its place.
    """
    require(path.suffix == ".html", f"cannot write {path}: its name must end in .html.")
    require(
        not path.exists() or _is_ours(path),
        f"{path} is no page of sdsl explore; it is not replaced: give another name.",
    )
    controls = _controls(explorer.choices, grid or default_grid(explorer.choices))
    states = list(itertools.product(*(one.values for one in controls)))
    require(
        len(states) <= _STATES,
        f"the grid has {len(states):,} states; a page holds at most {_STATES:,}: name fewer values.",
    )
    start = explorer.choices.start.texts()
    progress = progress or Silent()
    progress.start("states", len(states))
    views = []
    for values in states:
        texts = start | dict(zip((one.name for one in controls), values))
        found = explorer.view(texts, FEWER_COLUMNS).to_json()
        views.append({name: value for name, value in found.items() if name != "state"})
        progress.advance(1)
    progress.finish()
    opens = start | {one.name: written(_nearest(one, explorer.choices.start)) for one in controls}
    setup = explorer.setup(controls) | {"views": views, "state": opens}
    page = (
        environment("sdsl_jax.explore")
        .get_template("page.html.j2")
        .render(
            title=explorer.title,
            note=_note(explorer, controls),
            setup=script_json(setup),
            library=library(),
            explorer=part("explorer.js"),
        )
    )
    size = len(page.encode())
    require(
        size <= LARGEST,
        f"the page would have {size / 1e6:.1f} MB; at most {LARGEST / 1e6:g} MB are written: name fewer values.",
    )
    write_text(path, page)
    return len(states)


def _nearest(control: Control, start: State) -> Any:
    """The value of a page's control that is nearest to where the explorer opens."""
    own = getattr(start, control.name)
    if own in control.values or isinstance(own, str):
        return own if own in control.values else control.values[0]
    return min(control.values, key=lambda value: abs(math.log(value / own)))


def _is_ours(path: Path) -> bool:
    """Whether a file is a page that this module wrote."""
    with reading(path), path.open("rb") as file:
        return b'content="sdsl_jax explore"' in file.read(1000)


def _controls(choices: Choices, grid: Mapping[str, Sequence[Any]]) -> list[Control]:
    """The controls of the page, with the values of the grid as texts."""
    known = {one.name: one for one in choices.controls()}
    for name in grid:
        require(
            name in known and known[name].form != "sizes",
            f"{name} is no control of the page; those are {', '.join(n for n, c in known.items() if c.form != 'sizes')}.",
        )
    controls = []
    for name, one in known.items():
        if name not in grid:
            continue
        # Read as from an address, so that a page holds nothing that the explorer would not answer.
        states = [choices.state({name: str(value)}) for value in map(written, grid[name])]
        values = list(dict.fromkeys(getattr(state, name) for state in states))
        labels = [dict(zip(one.values, one.labels)).get(value) for value in values]
        shown = Control(name, one.label, one.unit, one.group, tuple(values)).labels
        if one.group == "Load" and one.unit:
            shown = digits(values)
        controls.append(
            dataclasses.replace(
                one,
                values=tuple(values),
                labels=tuple(label or own for label, own in zip(labels, shown)),
            )
        )
    return controls


def _note(explorer: Explorer, controls: Sequence[Control]) -> str:
    """What the page holds fixed, in words."""
    moved = {one.name for one in controls}
    start, held = explorer.choices.start, []
    for one in explorer.choices.controls():
        value = getattr(start, one.name)
        if one.name in moved or one.only_with is not None or value in ("", ()):
            continue
        label = dict(zip(one.values, one.labels)).get(value, written(value))
        held.append(f"{one.label.lower()}: {label}")
    return (
        "Made with sdsl_jax. This page needs no network. It holds the answers for the values of its controls. "
        f"Fixed here: {'; '.join(held)}."
    )
