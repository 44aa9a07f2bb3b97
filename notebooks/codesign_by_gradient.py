import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="A co-design study of your own")

with app.setup:
    import jax
    import jax.numpy as jnp
    import marimo as mo
    import numpy as np
    import optax
    import pandas
    from matplotlib.figure import Figure

    import sdsl_jax as sdsl
    from sdsl_jax.notebook import Picture
    from sdsl_jax.theory import BESIROGLU, LogitGap, ModelPoint, ParameterCost, tokens_per_round

    # Finite differences need more digits than single precision has.
    jax.config.update("jax_enable_x64", True)


@app.cell(hide_code=True)
def _():
    mo.md("""
    # A co-design study of your own

    The built-in answers maximise speed under limits. Your question may be another one. Here it is:
    **I will serve so many tokens. How large should the draft be, how long should I train it, and how
    far ahead should it guess, if training it costs money too?**

    **The takeaway:** write your objective from the functions of `sdsl_jax.theory`. Then `jax.grad`
    optimises it, and tells you what the answer depends on. No part of the library needs to know your
    question.
    """)
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## The numbers of the study

    The target has 70 billion parameters and was trained on 15 trillion tokens. The acceptance law
    stands for one that you fitted to pairs of your own. Prices are in dollars.
    """)
    return


@app.cell
def _():
    volume_exponent = mo.ui.slider(
        9, 13, step=0.5, value=11, label="tokens to serve (power of ten)", show_value=True
    )
    overhead = mo.ui.slider(
        0, 0.05, step=0.005, value=0.01, label="overhead of a draft step (target steps)", show_value=True
    )  # fmt: skip
    mo.vstack([volume_exponent, overhead])
    return overhead, volume_exponent


@app.cell
def _(overhead, volume_exponent):
    TARGET = 70e9
    acceptance_law = LogitGap(level=1.6, slope=1.1)
    target_point = ModelPoint(TARGET, BESIROGLU(TARGET, 15e12))
    numbers = {
        "tokens to serve": 10.0**volume_exponent.value,
        "dollars per million tokens, target alone": 1.0,
        "dollars per training FLOP": 1.4e-18,
        "overhead of a draft step": overhead.value,
    }
    return TARGET, acceptance_law, numbers, target_point


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## The objective

    Speculation divides the price of serving by the speed-up. Training a draft of N parameters on D
    tokens takes about 6·N·D FLOPs. The variables are logarithms, so that a step means the same
    percentage everywhere and nothing becomes negative.
    """)
    return


@app.cell
def _(TARGET, acceptance_law, numbers, target_point):
    def acceptance(params, tokens):
        draft = ModelPoint(params, BESIROGLU(params, tokens), tokens)
        return acceptance_law(draft, target_point)

    def design(x):
        """Draft size, training tokens and lookahead of x = (ln N, ln D, ln γ)."""
        return jnp.exp(x[0]), jnp.exp(x[1]), jnp.exp(x[2])

    def draft_step(params, given=numbers):
        return ParameterCost(TARGET, given["overhead of a draft step"]).draft_step(params)

    def dollars(x, given=numbers):
        """The price of serving and the price of training."""
        params, tokens, lookahead = design(x)
        speed = sdsl.speedup(acceptance(params, tokens), lookahead, draft_step(params, given))
        alone = given["tokens to serve"] / 1e6 * given["dollars per million tokens, target alone"]
        return alone / speed, 6 * params * tokens * given["dollars per training FLOP"]

    def objective(x, given=numbers):
        serving, training = dollars(x, given)
        return jnp.log(serving + training)

    start = jnp.log(jnp.array([1e9, 1e11, 2.0]))
    return acceptance, design, dollars, draft_step, objective, start


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Check the gradient

    A gradient that is wrong by a little still descends, and stops in the wrong place. So compare it
    with central differences before you rely on it.
    """)
    return


@app.cell
def _(objective, start):
    by_grad = jax.grad(objective)(start)
    h = 1e-5
    by_differences = jnp.array(
        [(objective(start + h * e) - objective(start - h * e)) / (2 * h) for e in jnp.eye(3)]
    )
    gradient_error = float(jnp.abs(by_grad - by_differences).max())
    assert gradient_error < 1e-7
    pandas.DataFrame(
        {"jax.grad": np.asarray(by_grad), "central differences": np.asarray(by_differences)},
        index=["by ln N", "by ln D", "by ln γ"],
    )
    return (gradient_error,)


@app.cell
def _(gradient_error):
    mo.md(f"The largest difference between the two is {gradient_error:.1e}.")
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Descend

    Adam from Optax goes most of the way. A few Newton steps with `jax.hessian` then make the gradient
    zero to the last digits.
    """)
    return


@app.cell
def _(numbers, objective, start):
    def solve(given):
        """The optimum for these numbers, and the objective on the way to it."""
        optimizer = optax.adam(0.1)

        def adam_step(state, _):
            x, moments = state
            value, gradient = jax.value_and_grad(objective)(x, given)
            updates, moments = optimizer.update(gradient, moments)
            return (optax.apply_updates(x, updates), moments), value

        (x, _), values = jax.lax.scan(adam_step, (start, optimizer.init(start)), length=400)

        def newton_step(x, _):
            gradient, hessian = jax.grad(objective)(x, given), jax.hessian(objective)(x, given)
            return x - jnp.linalg.solve(hessian, gradient), None

        return jax.lax.scan(newton_step, x, length=4)[0], values

    best, values = jax.jit(solve)(numbers)
    gradient_left = jnp.abs(jax.grad(objective)(best)).max()
    assert gradient_left < 1e-8
    return best, gradient_left, solve, values


@app.cell(hide_code=True)
def _(best, design, dollars, gradient_left, numbers):
    params, tokens, lookahead = design(best)
    serving, training = dollars(best)
    best_draft = params
    alone = numbers["tokens to serve"] / 1e6 * numbers["dollars per million tokens, target alone"]
    saved = 1 - (serving + training) / alone
    mo.md(f"""
    To serve {numbers["tokens to serve"] / 1e9:,.0f} billion tokens, train a draft of **{params / 1e6:.0f}M
    parameters** on **{tokens / 1e9:.0f}B tokens**, and let it guess **{lookahead:.1f} tokens** ahead.
    Training costs {training:,.0f} dollars and serving {serving:,.0f}. That is **{saved:.0%} less** than the
    target alone. The gradient there is {gradient_left:.0e}.
    """)
    return best_draft, lookahead, params, saved, tokens


@app.cell(hide_code=True)
def _(values):
    def draw_descent():
        figure = Figure(figsize=(7, 3), layout="constrained")
        axes = figure.subplots()
        axes.plot(jnp.exp(values) / jnp.exp(values[-1]), color="#2a4b9b")
        axes.set(
            xlabel="step of Adam (number)", ylabel="cost (last = 1)", yscale="log", xlim=(0, 200)
        )
        return Picture(
            figure,
            "Cost against the step of Adam. It falls steeply at first and is level long before the "
            "last step.",
        )

    draw_descent()
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Compare with the closed form

    Training does not depend on the lookahead, so at the best draft the lookahead only has to maximise
    the speed-up. For that there is a closed form with Lambert's W, which `optimal_lookahead`
    computes. Descent never saw it, and must agree with it.
    """)
    return


@app.cell
def _(acceptance, draft_step, lookahead, params, tokens):
    alpha = acceptance(params, tokens)
    closed = sdsl.optimal_lookahead(alpha, draft_step(params))
    lookahead_error = jnp.abs(lookahead - closed.lookahead)
    assert lookahead_error < 1e-6
    mo.md(
        f"Descent: γ = {lookahead:.6f}. Closed form: γ* = {closed.lookahead:.6f}. "
        f"A decoder takes the whole number {closed.lookahead_integer:.0f}, which emits "
        f"{tokens_per_round(alpha, closed.lookahead_integer):.2f} tokens per round."
    )
    return (lookahead_error,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## What does the answer depend on?

    At an optimum the gradient along the variables is zero. So the derivative of the best cost by any
    number is the derivative at fixed design (the envelope theorem). The optimum itself moves by
    −H⁻¹·∂g/∂θ, with the gradient g and its Hessian H (the implicit function theorem). Both are one
    line each.
    """)
    return


@app.cell
def _(best, numbers, objective):
    by_number = jax.grad(objective, argnums=1)(best, numbers)
    hessian = jax.hessian(objective)(best)
    mixed = jax.jacobian(jax.grad(objective), argnums=1)(best, numbers)
    moves = {name: -jnp.linalg.solve(hessian, mixed[name]) for name in numbers}
    pandas.DataFrame(
        {
            name: [float(by_number[name] * value)] + [float(m) for m in moves[name] * value]
            for name, value in numbers.items()
        },
        index=["cost", "draft size N", "training tokens D", "lookahead γ"],
    ).T.round(4).rename_axis("1% more of this changes, in %:")
    return (moves,)


@app.cell
def _(best, moves, numbers, solve):
    # The theorem against solving again, at 1% more tokens to serve.
    served = numbers["tokens to serve"]
    again, _ = jax.jit(solve)(numbers | {"tokens to serve": 1.01 * served})
    predicted = moves["tokens to serve"] * 0.01 * served
    theorem_error = jnp.abs(again - best - predicted).max() / jnp.abs(again - best).max()
    assert theorem_error < 0.02
    mo.md(
        f"Solved again with 1% more tokens to serve, the optimum moves as the theorem says, up to "
        f"{theorem_error:.1%} of the move."
    )
    return (theorem_error,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## From a little traffic to a lot

    `jax.vmap` solves the study for many volumes at once.
    """)
    return


@app.cell
def _(numbers, solve):
    volumes = jnp.geomspace(1e9, 1e13, 17)
    optima, _ = jax.jit(jax.vmap(lambda v: solve(numbers | {"tokens to serve": v})))(volumes)
    return optima, volumes


@app.cell(hide_code=True)
def _(optima, volumes):
    def draw_volumes():
        figure = Figure(figsize=(7, 3.8), layout="constrained")
        left, right = figure.subplots(1, 2)
        left.plot(volumes, jnp.exp(optima[:, 0]), color="#2a4b9b")
        left.set(xscale="log", yscale="log", ylabel="draft size N (parameters)")
        right.plot(volumes, jnp.exp(optima[:, 1]), color="#b0413e")
        right.set(xscale="log", yscale="log", ylabel="training tokens D (tokens)")
        figure.supxlabel("tokens to serve (tokens)", fontsize="medium")
        return Picture(
            figure,
            "Best draft size, left, and best number of training tokens, right, against the tokens "
            "to serve, on logarithmic axes. Both grow with the volume.",
        )

    draw_volumes()
    return


@app.cell
def _(optima):
    size_growth = jnp.exp(optima[-1, 0] - optima[0, 0])
    token_growth = jnp.exp(optima[-1, 1] - optima[0, 1])
    mo.md(
        f"From the smallest volume to the largest, the draft grows {size_growth:.0f} times and its "
        f"training tokens {token_growth:.0f} times."
    )
    return size_growth, token_growth


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Exercises

    1. Add the verify cost of a batch: give `sdsl.speedup` a `verify_pass` above 1. What happens to the
       lookahead?
    2. Replace `LogitGap` by the published plane, `sdsl.load_law("paper").law`. Which of the three
       variables moves most?
    3. Hold the tokens at 20 per parameter and optimise the other two. What does that rule cost at each
       volume?
    4. Start from `jnp.log(jnp.array([1e7, 1e9, 20.0]))`. Does descent reach the same optimum?

    ## Read on

    `docs/codesign.md` has the built-in study with devices, batches, memory and limits, and a longer
    example of `jax.grad` through it. `docs/theory.md` derives the closed form and the theorem.
    """)
    return


if __name__ == "__main__":
    app.run()
