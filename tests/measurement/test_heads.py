"""Exact acceptance of heads, draft by draft, beside the live decoder and a direct computation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.lossless import head as lossless_head
from benchmarks.lossless import model, table_head
from sdsl_jax.data.prompts import Prompts
from sdsl_jax.decoding import Head, Sampling, autoregress, speculate
from sdsl_jax.decoding.feature_drafter import with_tables
from sdsl_jax.measurement.heads import head_overlap
from sdsl_jax.measurement.pair import PairSettings, measure_models
from sdsl_jax.measurement.replay import expected_rounds
from sdsl_jax.models import forward, outputs
from sdsl_jax.models.feature_head import graft, unrolled

SAMPLING = Sampling(0.8)


@pytest.mark.parametrize("ids", [(), (0, 1, 3)])
def test_overlap_is_that_of_the_unrolled_drafts(ids):
    """A truncated head is compared on its own ids, which must make no difference."""
    target = model(2, 2)
    head = (
        with_tables(table_head(seed=3, readout_ids=ids), target)
        if ids
        else lossless_head(seed=3, taps=(2,))
    )
    tokens = np.random.default_rng(0).integers(0, 4, (5, 14))
    found = head_overlap(
        head,
        target,
        tokens[:, :-1],
        first=4,
        drafts=3,
        sampling=SAMPLING,
        following=tokens[:, 5:],
    )
    out = outputs(target.config, target.params, jnp.asarray(tokens[:, :-1]), taps=(2,))
    p = np.asarray(jax.nn.softmax(out.logits / 0.8))[:, 4:]
    q = unrolled(head.config, head.params, jnp.asarray(tokens[:, :-1]), out.features, 3)
    q = np.asarray(jax.nn.softmax(q / 0.8))[:, :, 4:]
    reached = p[..., list(ids)].sum(-1).mean() if ids else 1
    assert found.drafts[0].bound() == pytest.approx(reached)
    for k in range(3):
        alpha = np.minimum(p, q[k]).sum(-1)
        np.testing.assert_allclose(found.drafts[k].acceptance[0], alpha[:, k:].sum(-1), rtol=1e-4)
        assert (found.drafts[k].positions == 9 - k).all()
        chosen = [np.take_along_axis(x, tokens[:, 5:, None], -1)[..., 0] for x in (q[k], p)]
        np.testing.assert_allclose(
            found.drawn[:, :, k], np.minimum(1, chosen[0] / chosen[1]), rtol=1e-3
        )


@pytest.mark.slow
def test_expected_rounds_are_those_of_the_decoder():
    """Within 5 standard errors of 20,000 decoded rows, and of as many samples: a false alarm of 1e-6."""
    head, target = lossless_head(seed=3, taps=(2,)), model(2, 2)
    rows, new, largest = 20_000, 24, 3
    prompt = np.tile([[1, 0, 3]], (rows, 1))
    samples = np.asarray(
        autoregress(target, prompt, new_tokens=new, sampling=SAMPLING, seed=1).tokens
    )
    compared = head_overlap(
        head,
        target,
        samples[:, :-1],
        first=2,
        drafts=largest,
        sampling=SAMPLING,
        following=samples[:, 3:],
    )
    expected = expected_rounds(compared.drawn, largest, lengths=new - largest, confidence=0.9)[-1]
    plain, _ = forward(target.config, target.params, jnp.asarray(samples[:1, :-1]))
    assert np.isfinite(plain).all()
    decoded = speculate(
        head, target, prompt, lookahead=largest, new_tokens=new, sampling=SAMPLING, seed=2
    )
    events = jax.tree.map(np.asarray, decoded.events)
    # Rounds that start where those of the recursion do, with room for all drafts.
    counted = (events.emitted > 0) & (events.start - 3 < new - largest)
    rounds = counted.sum(axis=1)
    for k in range(1, largest + 1):
        survived = ((events.verified >= k) & counted).sum(axis=1)
        share = survived.sum() / rounds.sum()
        residual = survived - share * rounds
        error = np.sqrt((residual**2).sum()) / rounds.sum()
        low, high = expected.survival[k - 1].low, expected.survival[k - 1].high
        both = np.hypot(error, (high - low) / 2 / 1.645)
        assert abs(share - expected.survival[k - 1].estimate) < 5 * both
    # The first draft knows more than the others here, or the test would show nothing.
    alphas = [o.acceptance.sum() / o.positions.sum() for o in compared.drafts]
    assert abs(alphas[0] - alphas[1]) > 0.01


@pytest.mark.slow
def test_a_head_that_reads_nothing_is_measured_as_its_body():
    """P = Q = 0, prompts of different lengths, a stop token: all numbers are those of the plain model."""
    some, target, body = lossless_head(), model(2, 2), model(1, 1)
    plain = Head(some.config, graft(some.config, body.params))
    tokens = np.random.default_rng(0).integers(0, 4, (6, 5))
    prompts = Prompts(tokens, np.array([5, 2, 3, 1, 4, 5]), "random", 6, 0)
    settings = PairSettings(lookaheads=(1, 3), new_tokens=10, batch=6, stop_tokens=(2,))
    one, other = (measure_models(d, target, prompts, settings) for d in (plain, body))
    np.testing.assert_allclose(one.alpha, other.alpha, rtol=1e-5)
    assert one.positions == other.positions
    for a, b in zip(one.expected, other.expected):
        np.testing.assert_allclose(a.tokens_per_round, b.tokens_per_round, rtol=1e-5)
    for a, b in zip(one.lookaheads, other.lookaheads):
        np.testing.assert_array_equal(a.decoded.tokens, b.decoded.tokens)
        assert a.expected.estimate == pytest.approx(b.expected.estimate, rel=1e-5)
