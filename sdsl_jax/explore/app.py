"""The explorer as a marimo app; `sdsl explore` serves it."""

import marimo

app = marimo.App(width="full", app_title="sdsl explore")


@app.cell
def _():
    import marimo as mo

    from sdsl_jax.explore.serve import opened
    from sdsl_jax.explore.widget import ExplorerWidget

    explorer = opened()
    page = mo.ui.anywidget(ExplorerWidget(explorer))
    return explorer, mo, page


@app.cell
def _(explorer, mo, page):
    mo.vstack([mo.md(f"# {explorer.title}"), page])
    return


if __name__ == "__main__":
    app.run()
