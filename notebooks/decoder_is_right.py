import marimo

__generated_with = "0.25.2"
app = marimo.App(app_title="How is the decoder known to be right?")

with app.setup:
    from unittest import mock

    import jax
    import jax.numpy as jnp
    import marimo as mo
    import numpy as np
    import pandas
    from matplotlib.figure import Figure

    from sdsl_jax.decoding import (
        Model,
        Sampling,
        draw,
        probabilities,
        speculate,
        verification,
        verify_tokens,
    )
    from sdsl_jax.models import ModelConfig, forward, init_params
    from sdsl_jax.notebook import Picture


@app.cell(hide_code=True)
def _():
    mo.md("""
    # How is the decoder known to be right?

    Speculative decoding promises that its output has exactly the distribution of the target. A wrong
    decoder still writes fluent text, so reading it proves nothing. How can you tell?

    **The takeaway:** take models so small that every possible output can be listed with its exact
    probability. Decode many times, and compare. Then break the decoder on purpose, and check that
    the same test notices.
    """)
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Two models with four tokens

    Both models have random weights. The weights are enlarged, so that their distributions are far
    from uniform and far from each other: a draft like its target would hide mistakes.
    """)
    return


@app.cell
def _():
    VOCABULARY = 4

    def random_model(seed, layers):
        config = ModelConfig(
            vocab_size=VOCABULARY, width=8, layers=layers, heads=2, kv_heads=1, head_dim=4, hidden=12,
            tie_embeddings=False,
        )  # fmt: skip
        params = jax.tree.map(lambda x: 1.3 * x, init_params(config, jax.random.key(seed)))
        return Model(config, params)

    draft, target = random_model(1, layers=1), random_model(2, layers=2)
    prompt = [1, 0, 3]
    return VOCABULARY, draft, prompt, target


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## List every output

    Three new tokens out of four have 64 outcomes. One pass of the target over all of them gives the
    exact probability of each: the product of the target's probabilities along the way. Nothing of the
    decoder takes part in this.
    """)
    return


@app.cell
def _(VOCABULARY, prompt, target):
    NEW = 3
    outcomes = np.array(list(np.ndindex(*(VOCABULARY,) * NEW)))

    def exact_probabilities():
        texts = np.concatenate([np.tile(prompt, (len(outcomes), 1)), outcomes], axis=1)
        logits, _ = forward(target.config, target.params, jnp.asarray(texts))
        following = np.asarray(probabilities(logits, Sampling()), float)[:, len(prompt) - 1 : -1]
        return np.take_along_axis(following, outcomes[..., None], axis=2)[..., 0].prod(axis=1)

    exact = exact_probabilities()
    return NEW, exact, outcomes


@app.cell
def _(exact):
    total = exact.sum()
    mo.md(
        f"The {len(exact)} probabilities add up to {total:.6f}. The likeliest outcome has "
        f"{exact.max():.1%}, the least likely one {exact.min():.1e}."
    )
    return (total,)


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Decode many times

    Each row of a batch is an independent run from the same prompt. The decoder drafts two tokens per
    round, so a run has rounds in which both are kept, one is, or none.
    """)
    return


@app.cell
def _():
    samples = mo.ui.slider(
        steps=[1000, 4000, 20000, 60000], value=20000, label="decoded runs", show_value=True
    )
    samples
    return (samples,)


@app.cell
def _(NEW, VOCABULARY, draft, outcomes, prompt, samples, target):
    def counts_with(rule):
        """How often each outcome was decoded, under a rule of verification."""
        run = speculate(
            draft,
            target,
            np.tile(prompt, (samples.value, 1)),
            new_tokens=NEW,
            lookahead=2,
            verification=rule,
            seed=7,
        )
        new = np.asarray(run.tokens)[:, len(prompt) :]
        codes = VOCABULARY ** np.arange(NEW)[::-1]
        return np.bincount(new @ codes, minlength=len(outcomes))

    right = counts_with("token")
    return counts_with, right


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Compare

    The χ² test asks how likely counts at least this far from their expectation are, if the decoder is
    right. That probability is p. The decoder is rejected if p is below one in a million, so **a right
    decoder fails in one of a million runs** of this notebook. Outcomes that are expected fewer than
    five times are pooled.
    """)
    return


@app.cell
def _(exact):
    FALSE_ALARM = 1e-6

    def chi_square(counts):
        """P(χ² at least as large), if the outcomes have their exact probabilities."""
        expected = exact * counts.sum()
        rare = expected < 5
        seen = np.append(counts[~rare], counts[rare].sum())
        wanted = np.append(expected[~rare], expected[rare].sum())
        seen, wanted = seen[wanted > 0], wanted[wanted > 0]
        return float(
            jax.scipy.stats.chi2.sf(((seen - wanted) ** 2 / wanted).sum(), len(wanted) - 1)
        )

    return FALSE_ALARM, chi_square


@app.cell
def _(FALSE_ALARM, chi_square, right):
    p_right = chi_square(right)
    right_passes = p_right > FALSE_ALARM
    assert right_passes, f"the decoder is wrong: p = {p_right}"
    mo.md(f"For the decoder, **p = {p_right:.3g}**: it passes.")
    return p_right, right_passes


@app.cell(hide_code=True)
def _():
    mo.md("""
    ## Break it

    A test that cannot fail proves nothing. So here is a decoder with a mistake that is easy to make.
    A draft is accepted with probability min(1, p/q), as it should be. After a rejection, the next
    token is drawn from the target's distribution p. That sounds harmless, because p is what we want.
    The right distribution is the residual max(p − q, 0): tokens that the draft prefers have had their
    chance already.
    """)
    return


@app.cell
def _():
    def resample_from_p(drafts, draft_probs, target_probs, lookahead, uniforms, gumbels, ids=None):
        verdict = verify_tokens(
            drafts, draft_probs, target_probs, lookahead, uniforms, gumbels, ids
        )
        # The residual of p and nothing is p.
        return verdict._replace(next_token=draw(target_probs[verdict.accepted], gumbels))

    return (resample_from_p,)


@app.cell
def _(FALSE_ALARM, chi_square, counts_with, resample_from_p):
    # The broken rule is there for this run only.
    with mock.patch.dict(verification.VERIFICATIONS, resample_from_p=resample_from_p):
        wrong = counts_with("resample_from_p")
    p_wrong = chi_square(wrong)
    wrong_fails = p_wrong < FALSE_ALARM
    shown = f"= {p_wrong:.3g}" if p_wrong > 1e-30 else "is below 10⁻³⁰"
    mo.md(
        f"For the broken decoder, **p {shown}**: it "
        f"{'fails' if wrong_fails else 'passes, so there are too few runs to notice'}."
    )
    return p_wrong, wrong, wrong_fails


@app.cell(hide_code=True)
def _(exact, right, wrong):
    def draw_deviations():
        figure = Figure(figsize=(7, 3.8), layout="constrained")
        both = figure.subplots(2, 1, sharex=True, sharey=True)
        for axes, counts, name, color in (
            (both[0], right, "the decoder", "#2a4b9b"),
            (both[1], wrong, "rejections drawn from p", "#b0413e"),
        ):
            expected = exact * counts.sum()
            # Rare outcomes are pooled in the test, and have no standard error worth drawing.
            common = expected >= 5
            error = np.sqrt(expected * (1 - exact))
            deviation = np.where(common, (counts - expected) / error, 0)
            axes.bar(range(len(exact)), deviation, color=color)
            axes.axhspan(-3, 3, color="#eeeeee", zorder=0)
            axes.set_title(name, loc="left", fontsize="medium")
        both[1].set_xlabel("outcome (number)")
        figure.supylabel("deviation (standard errors)", fontsize="medium")
        return Picture(
            figure,
            "Deviation of the count of each of the 64 outcomes from its expectation, in standard "
            "errors. Those of the decoder stay within about three; those of the broken rule reach "
            "far beyond.",
        )

    draw_deviations()
    return


@app.cell(hide_code=True)
def _(p_right, p_wrong, right, wrong, exact):
    pandas.DataFrame(
        {
            "p of χ²": [f"{p:.3g}" if p > 1e-30 else "below 10⁻³⁰" for p in (p_right, p_wrong)],
            "largest error of an outcome's probability": [
                f"{abs(counts / counts.sum() - exact).max():.4f}" for counts in (right, wrong)
            ],
        },
        index=["the decoder", "rejections drawn from p"],
    )
    return


@app.cell(hide_code=True)
def _():
    mo.md("""
    Every outcome is still possible under the broken rule, so its text looks like any other. The
    self-check of acceptance is blind to it too, because the accept test is untouched. Only the
    distribution of the output tells.

    ## What the project's own tests add

    They decode ragged batches with stop tokens, temperatures, filters, both rules of verification,
    lookaheads that vary, and every kind of draft. Each of a list of mutations must fail by many orders
    of magnitude. `docs/decoding.md` has the list.

    ## Exercises

    1. Take 1,000 runs. Does the test still notice the broken rule? How many runs does it need?
    2. Test `"block"` verification with `counts_with("block")`. Is it lossless?
    3. Write a rule that accepts every draft. Predict which outcomes become too frequent, and look.
    4. Decode each batch with the same seed as the batch before, and add up the counts. Why does χ²
       reject a right decoder then?
    """)
    return


if __name__ == "__main__":
    app.run()
