import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="Which draft should I train?")

with app.setup:
    import jax
    import jax.numpy as jnp
    import marimo as mo
    import pandas
    from matplotlib.figure import Figure

    import sdsl_jax as sdsl
    from sdsl_jax.notebook import Picture
    from sdsl_jax.theory import elasticities


@app.cell(hide_code=True)
def _():
    mo.md("""
    # Which draft should I train?

    You have a large target model and want a small draft model for it. How large should the draft be?
    This tutorial answers from published scaling laws. It takes ten minutes and trains nothing.

    **The takeaway:** the best size grows more slowly than the target, and the optimum is flat. Ask
    for the range of sizes that lose at most 1%, and take the one in it that suits you.
    """)
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Describe your target

    Four numbers matter here: the size of the target, the training tokens of both models, and what a
    draft step costs beyond its parameters. That overhead is given in steps of the target.
    """)
    return


@app.cell
def _():
    target_billions = mo.ui.slider(
        steps=[1, 3, 7, 13, 30, 70, 180, 400], value=70, label="target size (10⁹)", show_value=True
    )
    draft_tokens = mo.ui.slider(
        steps=[50, 100, 200, 500, 1000, 5000],
        value=200,
        label="draft tokens (10⁹)",
        show_value=True,
    )
    target_tokens = mo.ui.slider(
        steps=[200, 1000, 5000, 15000], value=15000, label="target tokens (10⁹)", show_value=True
    )
    overhead = mo.ui.slider(
        0, 0.1, step=0.01, value=0.0, label="overhead (target steps)", show_value=True
    )
    mo.vstack([target_billions, draft_tokens, target_tokens, overhead])
    return draft_tokens, overhead, target_billions, target_tokens


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Ask for the best draft

    A `Scenario` holds the question and two laws. The loss law says how good a model of a size and a
    number of tokens is. The acceptance law says how often the target accepts a token of a draft.
    Both of these are published fits.
    """)
    return


@app.cell
def _(draft_tokens, overhead, target_billions, target_tokens):
    scenario = sdsl.Scenario(
        target_params=target_billions.value * 1e9,
        draft_tokens=draft_tokens.value * 1e9,
        target_tokens=target_tokens.value * 1e9,
        loss_law=sdsl.load_law("besiroglu").law,
        acceptance_law=sdsl.load_law("paper").law,
        draft_overhead=overhead.value,
    )
    best = scenario.optimum()
    low, high = best.indifference_1pct
    best_draft = best.params
    best_speedup = best.speedup_integer
    return best, best_draft, best_speedup, high, low, scenario


@app.cell(hide_code=True)
def _(best, best_draft, best_speedup, high, low, scenario):
    mo.md(f"""
    For a target of {scenario.target_params / 1e9:.0f}B parameters the best draft has
    **{best_draft / 1e6:.0f}M parameters** and guesses **{best.lookahead_integer:.0f} tokens ahead**.
    The target would accept {best.acceptance:.0%} of its tokens, and decoding would be
    **{best_speedup:.2f} times as fast**. Any draft from {low / 1e6:.0f}M to {high / 1e6:.0f}M
    parameters, each at its own best lookahead, comes within 1% of that.
    """)
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## See how flat the optimum is

    Here is the speed-up of every draft size, each at its best lookahead. A larger draft is accepted
    more often, and each of its steps costs more. Around the best size the two nearly cancel.
    """)
    return


@app.cell
def _(scenario):
    problem = scenario.problem()
    sizes = jnp.geomspace(1e7, 5e9, 200)
    at_best_lookahead = sdsl.optimal_lookahead(
        problem.acceptance(sizes), problem.cost.draft_step(sizes)
    )
    return at_best_lookahead, problem, sizes


@app.cell(hide_code=True)
def _(at_best_lookahead, best, best_draft, high, low, sizes):
    def draw_flatness():
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.axvspan(*best.indifference_5pct, color="#e8ecf6", label="within 5%")
        axes.axvspan(low, high, color="#c5d0ea", label="within 1%")
        axes.plot(sizes, at_best_lookahead.speedup, color="#2a4b9b")
        axes.axvline(best_draft, color="#b0413e", linestyle="--", label="best size")
        axes.set(
            xscale="log",
            xlim=(sizes[0], sizes[-1]),
            xlabel="draft size N (parameters)",
            ylabel="speed-up (target alone = 1)",
        )
        axes.legend(frameon=False)
        return Picture(
            figure,
            "Speed-up against draft size on a logarithmic axis. The curve is flat around the best "
            f"size of {best_draft / 1e6:.0f} million parameters, and falls off on both sides.",
        )

    draw_flatness()
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## See how the answer moves

    Every step is differentiable, through the optimum too. `elasticities` gives the percentage by
    which the best size grows if the target, or a number of training tokens, grows by 1%.
    """)
    return


@app.cell
def _(scenario):
    slopes = elasticities(scenario)
    with_target = slopes.target_params
    pandas.DataFrame(
        {"best draft size changes by (%)": [round(float(x), 4) for x in slopes]},
        index=["1% more target parameters", "1% more draft tokens", "1% more target tokens"],
    )
    return (with_target,)


@app.cell(hide_code=True)
def _(with_target):
    mo.md(f"""
    The first line is {with_target:.2f}, which is below 1. So a rule such as "a draft 100 times
    smaller than its target" is right for one target size only. `jax.vmap` solves a whole range of
    targets in one call:
    """)
    return


@app.cell
def _(scenario):
    targets = jnp.geomspace(1e9, 1e12, 60)
    drafts = jax.vmap(lambda m: scenario._replace(target_params=m).optimum())(targets)
    return drafts, targets


@app.cell(hide_code=True)
def _(best, drafts, scenario, targets):
    def draw_targets():
        figure = Figure(figsize=(7, 3.6), layout="constrained")
        axes = figure.subplots()
        axes.fill_between(targets, *drafts.indifference_1pct, color="#c5d0ea", label="within 1%")
        axes.plot(targets, drafts.params, color="#2a4b9b", label="best draft")
        ratio = scenario.target_params / best.params
        axes.plot(
            targets,
            targets / ratio,
            color="#b0413e",
            linestyle="--",
            label=f"a draft {ratio:.0f} times smaller",
        )
        axes.set(
            xscale="log",
            yscale="log",
            xlabel="target size M (parameters)",
            ylabel="draft size N (parameters)",
        )
        axes.legend(frameon=False)
        return Picture(
            figure,
            "Best draft size against target size on logarithmic axes. It grows more slowly than "
            "the line of a constant ratio, which it crosses at the target asked for.",
        )

    draw_targets()
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## What this leaves out

    The cost of a step is counted in parameters here. On a real device, layers take time whatever
    their size, and a batch makes verification dearer. Before you train a draft, ask the same question
    about your device with `sdsl.Problem` (`docs/codesign.md`). The published acceptance law also
    explains only part of the variance between pairs, so measure a pair of your own when you can.

    ## Exercises

    1. Move the overhead to 0.05 target steps. Does the best draft become larger or smaller, and why?
    2. Train the draft on 25 times as many tokens. How much speed-up does that buy, and how much does
       the best size change?
    3. Replace the acceptance law by `sdsl_jax.theory.LogitGap(level=1.6, slope=1.1)`. Is the range
       within 1% wider or narrower?

    ## Read on

    `docs/predict.md` has the same question on the command line. `docs/theory.md` derives the closed
    form of the best lookahead and the search over sizes.
    """)
    return


if __name__ == "__main__":
    app.run()
