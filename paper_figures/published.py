"""What the pages on published measurements share: the tables, and the names of their drafters."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

TABLES = Path(__file__).parents[1] / "experiments" / "published"
LENGTHS = TABLES / "specbundle_sglang_eagle3.csv"
LOADS = TABLES / "apertus_8b_kgrid.csv"
DOMAINS = TABLES / "dspark_paper_table1.csv"

HEAD = """# What we predict, what others measured

The tables in [experiments/published](../experiments/published/README.md) hold measurements that other people published, each row with its source.
Nothing on this page was measured here. Every prediction comes from a fit that did not see what it predicts: whole drafts, targets or domains are left out.
`python -m paper_figures published` writes this page, the figures (PNG and PDF) and the tables behind them (CSV) anew.

- A dash in the column *measured*: the row states the error of a law, or something that only a model can say.
- **Not testable on these:** the paper's acceptance plane. No source gives perplexities beside acceptance.

"""


def loads() -> pd.DataFrame:
    """Speed-ups of the Apertus drafters by domain, load and lookahead; only domains measured at several loads."""
    table = pd.read_csv(LOADS)
    table = table[table.speedup.notna() & table.batch.notna()]
    several = table.groupby(["draft", "domain"]).batch.transform("nunique") > 1
    return table[several].assign(
        drafter=table.method.map({"dspark": "DSpark", "eagle3.1": "EAGLE 3.1"})
    )
