"""`python -m paper_figures`: regenerates every figure, the CSV behind it, and the page that compares the numbers."""

from __future__ import annotations

import time
from pathlib import Path

import pandas as pd

from paper_figures import (
    acceptance_plane,
    collapse,
    flatness,
    latency,
    linear_law,
    optima_table,
    rules_of_thumb,
    throughput,
    token_dependence,
    weaknesses,
)
from paper_figures.common import Claim

FOLDER = Path(__file__).parent
FIGURES = {
    module.__name__.rpartition(".")[2]: module
    for module in (
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
    )
}

_HEAD = """# The paper's figures, computed again

arXiv 2603.11053, *Speculative Decoding Scaling Laws (SDSL): Throughput Optimization Made Simple*. The optima below are computed by
`sdsl_jax.theory` from the published laws named beside them, lines and planes through points by least squares; nothing is fitted to the paper's results. `python -m paper_figures` writes this page,
the figures (PNG and PDF) and the tables behind them (CSV) anew.

- **Targets:** the paper's 13, at nominal sizes and public token counts. Llama-3-70B and 3.1-70B share both, so they share a row's numbers.
- **Laws:** the loss law `besiroglu` (Epoch's refit of the Chinchilla runs), the paper's acceptance plane, and its cost c = N/M.
- **Not available:** the paper's pairs of perplexity and acceptance. The figure that needs them is drawn from a ladder of our own and says so.
- A dash in the column *paper*: the paper gives no number; ours is new.

"""


def page(tables: dict[str, pd.DataFrame], found: dict[str, list[Claim]]) -> str:
    """The Markdown page, from the tables and claims of all figures."""
    parts = [_HEAD]
    for name, module in FIGURES.items():
        parts.append(f"## {module.TITLE}\n\n![{module.TITLE}]({name}.png)\n\n{module.CAPTION}\n\n")
        parts.append(
            f"Data: [{name}.csv]({name}.csv). Vector graphics: [{name}.pdf]({name}.pdf).\n\n"
        )
        if hasattr(module, "listing"):
            parts.append(module.listing(tables[name]))
        parts.append("| quantity | paper | ours | difference | note |\n|---|---|---|---|---|\n")
        for claim in found[name]:
            paper = "–" if claim.paper is None else f"{claim.paper:{claim.form}}"
            difference = "–" if claim.difference is None else f"{100 * claim.difference:+.1f}%"
            quantity = claim.quantity.replace("|", "\\|")
            parts.append(
                f"| {quantity} | {paper} | {claim.ours:{claim.form}} | {difference} | {claim.note} |\n"
            )
        parts.append("\n")
    return "".join(parts).rstrip() + "\n"


def main() -> None:
    """Writes everything into this folder."""
    tables, found = {}, {}
    for name, module in FIGURES.items():
        began = time.perf_counter()
        table = tables[name] = module.compute()
        table.to_csv(FOLDER / f"{name}.csv", index=False, float_format="%.8g")
        module.draw(table, FOLDER, name)
        found[name] = module.claims(table)
        print(f"{name}: {time.perf_counter() - began:.1f} s")
    (FOLDER / "README.md").write_text(page(tables, found), encoding="utf-8")


if __name__ == "__main__":
    main()
