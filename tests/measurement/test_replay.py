import itertools

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdsl_jax.decoding import Model, Sampling, autoregress, speculate
from sdsl_jax.errors import SdslError
from sdsl_jax.measurement.events import acceptance_report, event_columns
from sdsl_jax.measurement.overlap import pairwise_overlap
from sdsl_jax.measurement.replay import (
    compare_verification,
    drawn_acceptance,
    expected_rounds,
    same_context_acceptance,
)
from sdsl_jax.models import ModelConfig, init_params
from sdsl_jax.statistics import ratio_interval

# A chain of three tokens: what follows depends on the token before. Token 0 comes first; in some
# tests token 2 stops a row.
_random = np.random.default_rng(0)
P, Q = _random.dirichlet(np.ones(3), 3), _random.dirichlet(np.ones(3), 3)
STOP = 2


def enumerate_decoder(limit, lookahead, stop=None):
    """Token verification on the chain, every course of it: expected starts with room for γ drafts,
    and survivors of each k.

    Drafts, acceptances, residuals and bonus tokens are followed one by one as the algorithm says,
    with their probabilities; nothing is known here about which emitted token came how.
    """
    started, survived = 0.0, np.zeros(lookahead)
    arriving = [dict.fromkeys(range(3), 0.0) for _ in range(limit + lookahead + 2)]
    arriving[0][0] = 1.0
    for t in range(limit):
        for context, chance in arriving[t].items():
            if chance == 0:
                continue
            counts = t <= limit - lookahead
            started += chance * counts
            paths = {
                context: chance
            }  # by last token: probability that the drafts so far were accepted and none stopped
            for k in range(lookahead):
                following = dict.fromkeys(range(3), 0.0)
                for last, alive in paths.items():
                    kept = np.minimum(P[last], Q[last])
                    survived[k] += alive * kept.sum() * counts
                    for token, rest in enumerate(
                        np.maximum(P[last] - Q[last], 0)
                    ):  # a rejection, and what replaces it
                        if token != stop:
                            arriving[t + k + 1][token] += alive * rest
                    for token in range(3):
                        if token != stop:
                            following[token] += alive * kept[token]
                paths = following
            for last, alive in paths.items():
                for token in range(3):
                    if token != stop:
                        arriving[t + lookahead + 1][token] += alive * P[last, token]
    return started, survived


def every_sample(limit, stop=None):
    """All samples of the chain with their probabilities: log p, log q, lengths, weights."""
    seen = {}
    for tokens in itertools.product(range(3), repeat=limit):
        length = tokens.index(stop) + 1 if stop in tokens else limit
        seen[tokens[:length]] = length
    n = len(seen)
    log_p, log_q, weights = np.full((n, limit), np.nan), np.full((n, limit), np.nan), np.ones(n)
    for i, tokens in enumerate(seen):
        for t, (before, token) in enumerate(zip((0, *tokens), tokens)):
            log_p[i, t], log_q[i, t] = np.log(P[before, token]), np.log(Q[before, token])
            weights[i] *= P[before, token]
    assert weights.sum() == pytest.approx(1)
    return log_p, log_q, np.array(list(seen.values())), weights


def expected(log_p, log_q, lookahead, lengths=None, limits=None, confidence=0.9):
    """One lookahead, where drafts behind the end of a sample count as not accepted."""
    width = log_p.shape[1]
    limits = np.broadcast_to(width if limits is None else limits, len(log_p))
    lengths = limits if lengths is None else lengths
    real = np.arange(width) < lengths[:, None]
    acceptance = np.where(
        real, drawn_acceptance(*(np.where(real, x, 0) for x in (log_p, log_q))), 0
    )
    return expected_rounds(
        acceptance, lookahead, lengths=lengths, limits=limits, confidence=confidence
    )[-1]


def weighted(log_p, log_q, lengths, weights, limits, lookahead):
    """Expectation over samples of starts and survivors, each sample scored alone."""
    started, survived = 0.0, np.zeros(lookahead)
    for i, weight in enumerate(weights):
        own = slice(i, i + 1)
        one = expected(log_p[own], log_q[own], lookahead, lengths[own], limits[own])
        started += weight * one.rounds
        survived += weight * one.rounds * np.array([s.estimate for s in one.survival])
    return started, survived


@pytest.mark.parametrize(
    ("limit", "lookahead", "stop"), [(5, 1, None), (5, 3, None), (5, 2, STOP), (5, 4, STOP)]
)
def test_recursion_over_samples_is_the_decoder_enumerated(limit, lookahead, stop):
    """Every sample, weighted by its probability, against every course of the algorithm; float32 sums of 5 terms."""
    samples = every_sample(limit, stop)
    started, survived = weighted(*samples, np.full(len(samples[0]), limit), lookahead)
    exact_started, exact_survived = enumerate_decoder(limit, lookahead, stop)
    assert started == pytest.approx(exact_started, rel=1e-5)
    np.testing.assert_allclose(survived, exact_survived, rtol=1e-5)


def test_limits_of_their_own():
    """Samples with limits of 5, 4 and 2 in one array are those of shorter arrays; a limit below γ leaves no round."""
    random = np.random.default_rng(1)
    log_p, log_q = -random.exponential(size=(3, 5)), -random.exponential(size=(3, 5))
    log_p[1:, 4:], log_q[2:, 2:] = np.nan, np.nan
    together = expected(log_p, log_q, 3, limits=np.array([5, 4, 2]))
    alone = [expected(log_p[i : i + 1, :n], log_q[i : i + 1, :n], 3) for i, n in ((0, 5), (1, 4))]
    assert together.rounds == pytest.approx(sum(one.rounds for one in alone), rel=1e-5)
    for k in range(3):
        pooled = sum(one.rounds * one.survival[k].estimate for one in alone) / together.rounds
        assert together.survival[k].estimate == pytest.approx(pooled, rel=1e-5)


@given(st.floats(0.05, 0.95), st.sampled_from([1, 3, 8]))
def test_constant_acceptance_is_the_geometric_formula(alpha, lookahead):
    found = expected_rounds(np.full((4, 12), alpha), lookahead)[-1]
    assert found.tokens_per_round.estimate == pytest.approx(
        sum(alpha**k for k in range(lookahead + 1)), rel=1e-5
    )
    for k, s in enumerate(found.survival, 1):
        assert s.estimate == pytest.approx(alpha**k, rel=1e-5, abs=1e-9)


def test_intervals_of_expected_rounds_cover():
    """90% intervals from 40 samples each, 300 times: between 83% and 95% must cover. At a true
    coverage of 89%, which is what intervals of ratios come to at 40 clusters, either bound is 3.3
    standard errors away: a false alarm of 1e-3 had the seed not been fixed."""
    random = np.random.default_rng(2)
    exact_started, exact_survived = enumerate_decoder(8, 2)
    truth = 1 + exact_survived.sum() / exact_started
    tokens = np.zeros((300 * 40, 9), int)
    for t in range(8):
        tokens[:, t + 1] = (
            random.random(len(tokens))[:, None] > np.cumsum(P[tokens[:, t]], axis=1)
        ).sum(axis=1)
    log_p, log_q = (
        np.log(table[tokens[:, :-1], tokens[:, 1:]]).reshape(300, 40, 8) for table in (P, Q)
    )
    intervals = [expected(p, q, 2).tokens_per_round for p, q in zip(log_p, log_q)]
    covered = np.mean([low <= truth <= high for _, low, high in intervals])
    assert 0.83 < covered < 0.95


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(acceptance=np.full(4, 0.5)), r"must be \[samples, tokens\]"),
        (dict(acceptance=np.full((2, 4), 1.5)), r"values outside \[0, 1\]"),
        (dict(acceptance=np.full((2, 4), np.nan)), r"values outside \[0, 1\]"),
        (dict(largest=0), r"lookahead is 0; it must lie in \[1, 4\]"),
        (dict(largest=5), r"lookahead is 5; it must lie in \[1, 4\]"),
        (dict(lengths=np.array([5, 1])), "0 <= length <= limit"),
        (dict(lengths=np.array([4, 4]), limits=np.array([3, 4])), "0 <= length <= limit"),
        (dict(largest=4, limits=np.array([3, 3])), "no sample has room for a block of 4"),
    ],
)
def test_samples_are_checked(change, message):
    with pytest.raises(SdslError, match=message):
        expected_rounds(**dict(acceptance=np.full((2, 4), 0.5), largest=2) | change)


def test_a_token_that_the_draft_never_proposes():
    """q(y) = 0 is a certain rejection, and a round of one token."""
    found = expected(np.zeros((2, 6)), np.full((2, 6), -np.inf), 2)
    assert found.tokens_per_round.estimate == 1
    assert found.rounds == 2 * 5


# --- other samplings in the same contexts ---


def log_softmax(x):
    return (
        x
        - np.log(np.exp(x - x.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - x.max(-1, keepdims=True)
    )


def test_other_temperatures_from_those_recorded():
    """Logits → what a run at temperature 1.7 stores → α at four samplings, against the logits themselves."""
    random = np.random.default_rng(3)
    logits = 2 * random.normal(size=(2, 7, 5, 11))
    recorded = log_softmax(logits / 1.7)
    counts = random.random((7, 5)) < 0.8
    recorded[:, ~counts] = -np.inf  # as where a run stored no distribution
    samplings = [Sampling(t) for t in (0.4, 1.0, 1.7)] + [Sampling(0.0)]
    found = same_context_acceptance(*recorded, samplings, recorded_temperature=1.7, counts=counts)
    for one, temperature in zip(found, (0.4, 1.0, 1.7)):
        p, q = np.exp(log_softmax(logits / temperature))
        expected = ratio_interval((np.minimum(p, q).sum(-1) * counts).sum(1), counts.sum(1), 0.9)
        assert one.acceptance == pytest.approx(expected, abs=1e-5)
        assert (one.sampling.temperature, one.positions, one.basis) == (
            temperature,
            counts.sum(),
            "same-context",
        )
    agreement = (logits[0].argmax(-1) == logits[1].argmax(-1))[counts].mean()
    assert found[3].acceptance.estimate == pytest.approx(agreement)


def test_filters_that_were_not_recorded():
    """Top-k of 1 leaves what greedy decoding leaves; tokens that the run had filtered out stay out."""
    logits = np.random.default_rng(4).normal(size=(2, 3, 4, 6))
    greedy, one = same_context_acceptance(
        *log_softmax(logits), [Sampling(0.0), Sampling(1.0, top_k=1)]
    )
    assert greedy.acceptance == one.acceptance
    apart = log_softmax(logits)
    apart[0, ..., :3], apart[1, ..., 3:] = -np.inf, -np.inf
    assert same_context_acceptance(*apart, [Sampling(5.0)])[0].acceptance.estimate == 0


def test_what_cannot_be_replayed():
    log_p = np.zeros((2, 3, 4))
    with pytest.raises(SdslError, match="recorded temperature is 0"):
        same_context_acceptance(log_p, log_p, [Sampling()], recorded_temperature=0.0)
    with pytest.raises(SdslError, match=r"shapes \(2, 3, 4\) and \(2, 3\)"):
        same_context_acceptance(log_p, log_p[..., 0], [Sampling()])
    with pytest.raises(SdslError, match="no position counts"):
        same_context_acceptance(log_p, log_p, [Sampling()], counts=np.zeros((2, 3), bool))
    with pytest.raises(SdslError, match=r"counts has shape \(3,\)"):
        same_context_acceptance(log_p, log_p, [Sampling()], counts=np.ones(3, bool))


# --- block against token verification ---


def block_accepted(p, q, drafts):
    """Expected accepted drafts of block verification given all drafts of the block, by its
    algorithm (2403.10444, algorithm 2).

    p and q are functions of the drafts so far. h_i is the chance that a stop is set at i; the last
    one set counts.
    """
    w, last = 1.0, np.zeros(len(drafts) + 1)
    last[0] = 1.0
    for i in range(1, len(drafts) + 1):
        before, token = drafts[: i - 1], drafts[i - 1]
        w = min(1.0, w * p(before)[token] / q(before)[token])
        if i == len(drafts):
            h = w
        else:
            left = np.maximum(w * p(drafts[:i]) - q(drafts[:i]), 0).sum()
            h = left / (left + 1 - w) if left + 1 - w > 0 else 0.0
        last *= 1 - h
        last[i] = h
    return (np.arange(len(drafts) + 1) * last).sum()


@pytest.mark.parametrize("lookahead", [1, 2, 4])
def test_expected_accepted_drafts_over_every_block(lookahead):
    """The chain's 3^γ blocks weighted by q: Σ w_i has the mean of the algorithm itself, Σ Π min(1, p/q) that of Σ_k S_k."""
    blocks = list(itertools.product(range(3), repeat=lookahead))
    p, q = (lambda before, table=table: table[(0, *before)[-1]] for table in (P, Q))
    weights = [np.prod([q(b[:i])[b[i]] for i in range(lookahead)]) for b in blocks]
    algorithm = sum(w * block_accepted(p, q, b) for w, b in zip(weights, blocks))
    paths, token = np.eye(3)[0], 0.0
    for _ in range(lookahead):
        paths = paths @ np.minimum(P, Q)
        token += paths.sum()

    contexts = np.array([[(0, *b)[i] for i in range(lookahead + 1)] for b in blocks])[:, None]
    found = compare_verification(
        np.array(blocks)[:, None],
        Q[contexts[..., :-1]],
        P[contexts],
        np.full((len(blocks), 1), lookahead),
    )
    assert (weights * found.block[:, 0]).sum() == pytest.approx(algorithm, rel=1e-5)
    assert (weights * found.token[:, 0]).sum() == pytest.approx(token, rel=1e-5)


def random_blocks(seed, B=5, R=4, G=6, V=4, sharpness=1.0):
    random = np.random.default_rng(seed)
    q, p = (
        random.dirichlet(np.full(V, 1 / sharpness), (B, R, G)),
        random.dirichlet(np.full(V, 1 / sharpness), (B, R, G + 1)),
    )
    q, p = q.astype(np.float32), p.astype(np.float32)
    drafts = (random.random((B, R, G, 1)) > np.cumsum(q, axis=-1)).sum(-1).clip(0, V - 1)
    q = np.maximum(q, 1e-6)
    return drafts, q, p, random.integers(0, G + 1, (B, R))


@given(st.integers(0, 10_000), st.floats(0.2, 5))
def test_block_verification_never_keeps_fewer(seed, sharpness):
    """In each block, and not only on average; and no more than were drafted. A rounding of float32 for each draft."""
    drafts, q, p, proposed = random_blocks(seed, sharpness=sharpness)
    found = compare_verification(drafts, q, p, proposed)
    assert (found.block >= found.token - 1e-6).all()
    assert (found.token >= 0).all()
    assert (found.block <= proposed + 1e-6).all()
    np.testing.assert_allclose(
        found.block[proposed <= 1], found.token[proposed <= 1], atol=1e-6
    )  # one draft: the same rule


def test_blocks_are_counted_by_what_they_proposed():
    """What stands behind the drafts of a round does not matter, be it zeros; rounds without drafts are none."""
    drafts, q, p, proposed = random_blocks(7)
    found = compare_verification(drafts, q, p, proposed)
    behind = np.arange(drafts.shape[-1]) >= proposed[..., None]
    drafts[behind], q[behind], p[:, :, :-1][behind] = 0, 0, np.nan
    same = compare_verification(drafts, q, p, proposed)
    np.testing.assert_array_equal(found.block, same.block)
    np.testing.assert_array_equal(found.token, same.token)
    rounds = (proposed > 0).sum(1)
    assert found.rounds == rounds.sum()
    assert found.gain == ratio_interval((found.block - found.token).sum(1), rounds, 0.9)
    assert found.gain.estimate == pytest.approx(
        found.block_accepted.estimate - found.token_accepted.estimate
    )
    assert found.gain.estimate > 0


def test_blocks_are_checked():
    drafts, q, p, proposed = random_blocks(8)
    with pytest.raises(SdslError, match="they must be"):
        compare_verification(drafts, q, p[:, :, :-1], proposed)
    with pytest.raises(SdslError, match="they must be"):
        compare_verification(drafts, q[..., 0], p, proposed)
    with pytest.raises(SdslError, match=r"it must lie in \[0, 6\]"):
        compare_verification(drafts, q, p, proposed + 1)
    with pytest.raises(SdslError, match="be positive in some round"):
        compare_verification(drafts, q, p, 0 * proposed)
    with pytest.raises(SdslError, match="cannot have drawn it"):
        compare_verification(drafts, 0 * q, p, proposed)


# --- against the live decoder ---

V, PROMPT, NEW, ROWS = 6, 3, 24, 1500


@pytest.fixture(scope="module")
def live():
    """A pair, prompts, samples of the target that token 5 may end early, and their log-probabilities under both."""
    config = ModelConfig(
        vocab_size=V, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, hidden=12
    )
    own, noise = (init_params(config, jax.random.key(seed)) for seed in (2, 1))
    target = Model(config, jax.tree.map(lambda x: 2.5 * x, own))
    # A draft that is the target with other weights mixed in, so that blocks are often accepted deep
    # into them.
    draft = Model(config, jax.tree.map(lambda x, y: 2.5 * (0.8 * x + 0.2 * y), own, noise))
    prompts = np.random.default_rng(5).integers(0, V - 1, (ROWS, PROMPT))
    sampled = autoregress(target, prompts, new_tokens=NEW, seed=11, stop_tokens=(5,))
    tokens, lengths = np.asarray(sampled.tokens), np.asarray(sampled.lengths)
    scores = pairwise_overlap(
        {"d": draft},
        {"t": target},
        tokens[:, :-1],
        first=PROMPT - 1,
        following=tokens[:, PROMPT:],
        lengths=lengths - 1,
    )
    return draft, target, prompts, scores, lengths - PROMPT


@pytest.mark.release
@pytest.mark.parametrize("lookahead", [1, 3, 6])
def test_recursion_predicts_the_live_decoder(live, lookahead):
    """τ and every S_k from samples against those decoded, stop tokens included: five joint standard
    errors of independent estimates, a false alarm of 6e-7 for each of 13."""
    draft, target, prompts, scores, lengths = live
    log_p, log_q = scores.targets["t"].log_probs[0], scores.drafts["d"].log_probs[0]
    assert (lengths < NEW).mean() > 0.1
    # A live round is whole if γ + 1 tokens fit: the last position cannot be the last draft of one.
    limits = np.full(ROWS, NEW - 1)
    predicted = expected(
        log_p, log_q, lookahead, np.minimum(lengths, NEW - 1), limits, confidence=0.6827
    )
    decoded = speculate(
        draft,
        target,
        prompts,
        lookahead=lookahead,
        new_tokens=NEW,
        seed=100 + lookahead,
        stop_tokens=(5,),
    )
    report = acceptance_report(
        event_columns(decoded), max_lengths=PROMPT + NEW, whole_rounds_only=True, confidence=0.6827
    )
    pairs = [(predicted.tokens_per_round, report.estimates["eagle_tau"])]
    pairs += [
        (s, report.estimates[f"vllm_position_{k}"]) for k, s in enumerate(predicted.survival, 1)
    ]
    for predicted, observed in pairs:
        error = np.hypot(predicted.high - predicted.low, observed.high - observed.low) / 2
        assert abs(predicted.estimate - observed.estimate) < 5 * error
        assert error < 0.05


@pytest.mark.slow
def test_replayed_blocks_predict_the_live_decoder(live):
    """Drafts kept against their expectation over the same blocks, under either rule: five standard errors, 6e-7 each."""
    draft, target, prompts, *_ = live
    for rule in ("token", "block"):
        decoded = speculate(
            draft,
            target,
            prompts[:400],
            lookahead=4,
            new_tokens=12,
            seed=7,
            verification=rule,
            keep_distributions=True,
        )
        found = compare_verification(*decoded.blocks, decoded.events.proposed)
        surplus = (
            np.asarray(decoded.events.verified) - (found.token if rule == "token" else found.block)
        ).ravel()
        assert abs(surplus.sum()) < 5 * np.sqrt((surplus**2).sum())
        assert found.gain.low > 0
