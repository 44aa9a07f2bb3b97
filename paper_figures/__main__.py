"""`python -m paper_figures`: regenerates every figure, the CSV behind it, and the pages that compare the numbers.

`python -m paper_figures paper` and `python -m paper_figures published` write one of the two pages.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import pandas as pd

from paper_figures import (
    acceptance_plane,
    collapse,
    flatness,
    latency,
    linear_law,
    optima_table,
    published,
    published_domains,
    published_loads,
    published_positions,
    published_step_times,
    rules_of_thumb,
    throughput,
    token_dependence,
    weaknesses,
)
from paper_figures.common import Claim

FOLDER = Path(__file__).parent


class Page(NamedTuple):
    """A page of figures.

    Attributes:
      file: Name of its file.
      head: What stands above the figures.
      columns: Names of the columns of a comparison: theirs, ours.
      figures: Modules of the figures, by name.
    """

    file: str
    head: str
    columns: tuple[str, str]
    figures: dict[str, ModuleType]


def _by_name(*modules: ModuleType) -> dict[str, ModuleType]:
    return {module.__name__.rpartition(".")[2]: module for module in modules}


_HEAD = """# The paper's figures, computed again

arXiv 2603.11053, *Speculative Decoding Scaling Laws (SDSL): Throughput Optimization Made Simple*. The optima below are computed by
`sdsl_jax.theory` from the published laws named beside them, lines and planes through points by least squares; nothing is fitted to the paper's results. `python -m paper_figures` writes this page,
the figures (PNG and PDF) and the tables behind them (CSV) anew.

- **Targets:** the paper's 13, at nominal sizes and public token counts. Llama-3-70B and 3.1-70B share both, so they share a row's numbers.
- **Laws:** the loss law `besiroglu` (Epoch's refit of the Chinchilla runs), the paper's acceptance plane, and its cost c = N/M.
- **Not available:** the paper's pairs of perplexity and acceptance. The figure that needs them is drawn from a ladder of our own and says so.
- A dash in the column *paper*: the paper gives no number; ours is new.

"""

PAGES = {
    "paper": Page(
        "README.md",
        _HEAD,
        ("paper", "ours"),
        _by_name(
            optima_table,
            acceptance_plane,
            throughput,
            linear_law,
            collapse,
            token_dependence,
            latency,
            flatness,
            rules_of_thumb,
            weaknesses,
        ),
    ),
    "published": Page(
        "published.md",
        published.HEAD,
        ("measured", "predicted"),
        _by_name(published_loads, published_step_times, published_positions, published_domains),
    ),
}
FIGURES = PAGES["paper"].figures


def page(
    tables: dict[str, pd.DataFrame],
    found: dict[str, list[Claim]],
    layout: Page = PAGES["paper"],
) -> str:
    """The Markdown page, from the tables and claims of all figures."""
    parts = [layout.head]
    for name, module in layout.figures.items():
        parts.append(f"## {module.TITLE}\n\n![{module.TITLE}]({name}.png)\n\n{module.CAPTION}\n\n")
        parts.append(
            f"Data: [{name}.csv]({name}.csv). Vector graphics: [{name}.pdf]({name}.pdf).\n\n"
        )
        if hasattr(module, "listing"):
            parts.append(module.listing(tables[name]))
        theirs, ours = layout.columns
        parts.append(
            f"| quantity | {theirs} | {ours} | difference | note |\n|---|---|---|---|---|\n"
        )
        for claim in found[name]:
            paper = "–" if claim.paper is None else f"{claim.paper:{claim.form}}"
            known = claim.ours == claim.ours
            own = f"{claim.ours:{claim.form}}" if known else "–"
            difference = (
                "–" if claim.difference is None or not known else f"{100 * claim.difference:+.1f}%"
            )
            quantity = claim.quantity.replace("|", "\\|")
            parts.append(f"| {quantity} | {paper} | {own} | {difference} | {claim.note} |\n")
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


def main() -> None:
    """Writes the pages that are named, or both, into this folder."""
    wanted = sys.argv[1:] or [*PAGES]
    unknown = [name for name in wanted if name not in PAGES]
    if unknown:
        raise SystemExit(f"{unknown[0]} is no page; there are {' and '.join(PAGES)}.")
    for layout in (PAGES[name] for name in wanted):
        tables, found = {}, {}
        for name, module in layout.figures.items():
            began = time.perf_counter()
            table = tables[name] = module.compute()
            table.to_csv(FOLDER / f"{name}.csv", index=False, float_format="%.8g")
            module.draw(table, FOLDER, name)
            found[name] = module.claims(table)
            print(f"{name}: {time.perf_counter() - began:.1f} s")
        text = page(tables, found, layout)
        (FOLDER / layout.file).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
