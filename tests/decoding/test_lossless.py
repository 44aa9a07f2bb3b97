"""The joint distribution of what the decoder emits, and mutations that must fail the tests which
the decoder passes.

χ² tests have a false alarm of 1e-6 in all: 1e-6 over their number, at most 50, each. Mutations are
written so that they fail by many orders of magnitude.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import lossless
from benchmarks.lossless import (
    chi_square,
    covering,
    decode_ragged,
    hybrid,
    model,
    outcomes,
    truncated,
)
from sdsl_jax.decoding import (
    ConfidenceThreshold,
    Model,
    NgramDraft,
    OnlineLookahead,
    Sampling,
    SharedBudget,
    drafters,
    loop,
    probabilities,
    speculate,
    verification,
)
from sdsl_jax.decoding.noise import row_keys
from sdsl_jax.models import forward, init_params, prefill

ALPHA = 1e-6 / 50
PLAIN = Sampling()
# Between the quartiles of the draft's largest probability.
SURE = 0.75


def p_values(draft, target, samples, sampling=PLAIN, **settings):
    """One for each kind of prompt in a ragged batch whose rows stop at different times."""
    found = decode_ragged(draft, target, samples, sampling=sampling, **settings)
    return [
        chi_square(f.sequences, outcomes(target, *p, sampling))
        for f, p in zip(found, lossless.PROMPTS)
    ]


def test_every_pair_of_settings_is_covered():
    cells = [cell for cell in covering() if cell.temperature > 0]
    assert len(cells) <= 22
    seen = {
        (i, a[i], j, a[j])
        for a in (tuple(vars(c).values()) for c in cells)
        for i in range(6)
        for j in range(i + 1, 6)
    }
    levels = [tuple(x for x in level if x != 0.0) for level in lossless.LEVELS.values()]
    assert len(seen) == sum(
        len(levels[i]) * len(levels[j]) for i in range(6) for j in range(i + 1, 6)
    )
    assert {c.lookahead for c in covering() if c.temperature == 0} == {1, 2, 4, 7}


@pytest.mark.slow
def test_the_check_can_fail():
    """One percent of probability moved from one sequence to another is seen; an impossible sequence is as well."""
    target = model(2, 2)
    expected = outcomes(target, *lossless.PROMPTS[0], PLAIN)
    assert expected.probabilities.sum() == pytest.approx(1, abs=1e-5)
    random = np.random.default_rng(0)
    p = expected.probabilities / expected.probabilities.sum()
    good = expected.sequences[random.choice(len(p), 40_000, p=p)]
    assert chi_square(good, expected) > ALPHA
    moved = p.copy()
    likely, other = np.argsort(-p)[:2]
    moved[likely] -= 0.02
    moved[other] += 0.02
    assert chi_square(expected.sequences[random.choice(len(p), 40_000, p=moved)], expected) < ALPHA
    filtered = outcomes(target, *lossless.PROMPTS[0], Sampling(top_k=2))
    assert (filtered.probabilities == 0).any()
    assert chi_square(good, filtered) == 0


# One cell in three in the full check, in turn over lookaheads, filters, types and rules; all of
# them before a release.
@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(c, marks=pytest.mark.release if n % 3 else pytest.mark.slow)
        for n, c in enumerate(covering())
    ],
    ids=str,
)
def test_joint_distribution(cell):
    assert min(lossless.check(cell, 8_192 if cell.batch == "1" else 20_000)) > ALPHA


@pytest.mark.parametrize(
    "rule",
    [
        pytest.param("token", marks=pytest.mark.release),
        pytest.param("block", marks=pytest.mark.slow),
    ],
)
def test_a_draft_of_negated_logits(rule):
    """The draft prefers what the target avoids: nearly everything comes from residuals."""
    target = model(2, 2)
    settings = dict(lookahead=4, verification=rule)
    assert min(p_values(model(2, 2, negate=True), target, 20_000, **settings)) > ALPHA
    decoded = speculate(
        model(2, 2, negate=True), target, np.array([[3]] * 512), new_tokens=5, **settings
    )
    assert float(decoded.events.accepted.sum() / (decoded.events.emitted > 0).sum()) < 0.5


def after_full_acceptance(lookahead, verify, samples=24_576):
    """p-value of the last four tokens, and the share of rows that emitted more after a full
    acceptance.

    With a draft close to the target and γ + 2 tokens, whole blocks are kept often, and what follows
    them is looked at. All sequences are enumerated, and their probabilities added up over what
    precedes the last four tokens.
    """
    target, new, prompt = model(2, 2), lookahead + 2, (1, 0, 3)
    noise = model(7, 2).params
    draft = target._replace(
        params=jax.tree.map(lambda t, n: 0.9 * t + 0.1 * n, target.params, noise)
    )
    ids, followed = [], []
    for run in range(samples // 8192):
        decoded = speculate(
            draft,
            target,
            np.tile(prompt, (8192, 1)),
            lookahead=lookahead,
            new_tokens=new,
            seed=run,
            verification=verify,
        )
        events = jax.tree.map(np.asarray, decoded.events)
        full = (
            (events.accepted == lookahead)
            & (events.emitted == lookahead + 1)
            & (events.stop_reason == 0)
        )
        followed.append(full.any(axis=1).mean())
        ids.append(np.asarray(decoded.tokens)[:, -4:])
    everything = np.asarray(list(np.ndindex(*(lossless.V,) * new)))
    chances = np.ones(len(everything))
    for part in np.array_split(np.arange(len(everything)), max(1, len(everything) // 32_768)):
        tokens = np.concatenate([np.tile(prompt, (len(part), 1)), everything[part]], axis=1)
        probs = lossless._target_probs(target, tokens, len(prompt), PLAIN)
        chances[part] = np.take_along_axis(probs, everything[part][..., None], axis=2)[..., 0].prod(
            axis=1
        )
    expected = np.bincount(everything[:, -4:] @ 4 ** np.arange(4), weights=chances, minlength=4**4)
    assert expected.sum() == pytest.approx(1, abs=1e-4)
    last = np.asarray(list(np.ndindex(4, 4, 4, 4)))
    outcome = lossless.Outcomes(last, expected[last @ 4 ** np.arange(4)])
    return chi_square(np.concatenate(ids), outcome), np.mean(followed)


@pytest.mark.parametrize(
    ("lookahead", "verify"),
    [pytest.param(4, "block", marks=pytest.mark.slow)]
    + [
        pytest.param(*each, marks=pytest.mark.release)
        for each in ((4, "token"), (7, "token"), (7, "block"))
    ],
)
def test_what_follows_a_full_acceptance(lookahead, verify):
    p, followed = after_full_acceptance(lookahead, verify)
    assert followed > 0.1
    assert p > ALPHA


RULES = {
    "confidence": ConfidenceThreshold(SURE),
    "online": OnlineLookahead(draft_step=0.2, prior_tests=1.0, memory=0.8),
    # Most rows go to 0 now and then, in a ragged batch seldom all at once.
    "pausing": OnlineLookahead(draft_step=0.5, prior_tests=1.0, memory=0.8, probe_every=2),
    # One draft a row on average.
    "shared": SharedBudget(8192),
}


@pytest.mark.parametrize(
    ("rule", "verify"),
    [
        pytest.param("online", "block", marks=pytest.mark.slow),
        pytest.param("shared", "token", marks=pytest.mark.slow),
    ]
    + [
        pytest.param(rule, verify, marks=pytest.mark.release)
        for rule in RULES
        for verify in ("token", "block")
        if (rule, verify) not in (("online", "block"), ("shared", "token"))
    ],
)
def test_adaptive_lookahead_is_lossless(rule, verify):
    settings = dict(lookahead=RULES[rule], max_lookahead=4, verification=verify)
    assert min(p_values(model(1, 1), model(2, 2), 30_000, **settings)) > ALPHA
    if rule == "shared":
        settings["lookahead"] = SharedBudget(64)
    decoded = speculate(model(1, 1), model(2, 2), np.array([[3]] * 64), new_tokens=20, **settings)
    # The rule does vary the lookahead.
    assert (
        len(np.unique(np.asarray(decoded.events.proposed)[np.asarray(decoded.events.emitted) > 0]))
        >= 3
    )


def in_pairs(draft, target, rule, samples, verify="token", new=2):
    """Continuations of pairs of rows with different prompts, each pair a batch of its own, and p of
    their joint outcomes: the product of the target's own, [samples, 2·new]."""
    prompts, lengths = jnp.asarray([[3, 0], [1, 0]]), jnp.asarray([1, 2])
    drafter, G = drafters.ModelDrafter(draft.config), 3
    buffer = 2 + new
    state = drafter.start(draft.params, prompts, buffer + G + 1)
    cache = prefill(target.config, target.params, prompts, capacity=buffer + G + 1)
    rule = rule.check(G)

    @jax.jit
    def run(params, numbers, state, cache):
        def one(number):
            keys = row_keys(5, 2 * number + jnp.arange(2))
            stops = jnp.zeros(0, jnp.int32)
            requests = loop.Requests(prompts, lengths, lengths + new, keys, stops)
            return loop.speculative_loop(
                drafter, target.config, params[0], params[1], requests, PLAIN.check(), rule, state, cache,
                verification=verify, max_lookahead=G, buffer=buffer, max_rounds=new, keep_distributions=False,
            )  # fmt: skip

        return jax.lax.map(one, numbers)

    numbers = jnp.arange(samples, dtype=jnp.uint32)
    decoded = run((draft.params, target.params), numbers, state, cache)
    tokens = np.asarray(decoded.tokens)
    both = np.concatenate([tokens[:, 0, 1 : 1 + new], tokens[:, 1, 2 : 2 + new]], axis=1)
    everything = np.asarray(list(np.ndindex(*(lossless.V,) * new)))
    chances = []
    for prompt in ([3], [1, 0]):
        whole = np.concatenate([np.tile(prompt, (len(everything), 1)), everything], axis=1)
        p = lossless._target_probs(target, whole, len(prompt), PLAIN)
        chances.append(np.take_along_axis(p, everything[..., None], axis=2)[..., 0].prod(axis=1))
    first, second = np.indices((len(everything),) * 2).reshape(2, -1)
    sequences = np.concatenate([everything[first], everything[second]], axis=1)
    outcome = lossless.Outcomes(sequences, chances[0][first] * chances[1][second])
    return chi_square(both, outcome), decoded


@pytest.mark.parametrize(
    "verify",
    [
        pytest.param("token", marks=pytest.mark.slow),
        pytest.param("block", marks=pytest.mark.release),
    ],
)
def test_rounds_of_both_kinds_are_lossless(verify):
    """Pairs whose rows go to 0, often both at once: a plain step, after which the draft catches up."""
    rule = OnlineLookahead(0.5, prior_tests=0.5, memory=0.8, probe_every=3)
    p, decoded = in_pairs(model(1, 1), model(2, 2), rule, 20_000, verify)
    assert p > ALPHA
    events = jax.tree.map(np.asarray, decoded.events)
    plain = (events.emitted > 0).any(axis=1) & ~events.proposed.any(axis=1)
    assert plain.any(axis=1).mean() > 0.1


@pytest.mark.parametrize(
    "verify",
    [
        pytest.param("token", marks=pytest.mark.slow),
        pytest.param("block", marks=pytest.mark.release),
    ],
)
def test_rows_that_share_a_budget_are_jointly_lossless(verify):
    """Each row's lookahead depends on the other's drafts, and yet the two outcomes are independent."""
    p, decoded = in_pairs(model(1, 1), model(2, 2), SharedBudget(3), 20_000, verify)
    assert p > ALPHA
    drafts = np.asarray(decoded.events.proposed)[:, :, 0]
    assert {tuple(x.tolist()) for x in np.unique(drafts, axis=0)} >= {(1, 2), (2, 1)}


@pytest.mark.parametrize(
    "verify",
    [
        pytest.param("token", marks=pytest.mark.slow),
        pytest.param("block", marks=pytest.mark.release),
    ],
)
def test_ngram_drafts_are_lossless(verify):
    settings = dict(lookahead=3, verification=verify)
    assert min(p_values(NgramDraft(lossless.V), model(2, 2), 30_000, **settings)) > ALPHA


@pytest.mark.parametrize(
    ("draft", "verify"),
    [
        pytest.param(truncated, "token", marks=pytest.mark.slow, id="model-token"),
        pytest.param(truncated, "block", marks=pytest.mark.release, id="model-block"),
        pytest.param(
            lambda: hybrid(truncated()), "token", marks=pytest.mark.release, id="hybrid-token"
        ),
        pytest.param(
            lambda: hybrid(truncated()), "block", marks=pytest.mark.slow, id="hybrid-block"
        ),
    ],
)
def test_drafts_of_some_ids_are_lossless(draft, verify):
    """The target gives the other id as well, which then comes from residuals, and n-grams copy it."""
    settings = dict(lookahead=3, verification=verify)
    assert min(p_values(draft(), model(2, 2), 30_000, **settings)) > ALPHA


# ---- Mutations. Each replaces one piece of the loop, which is then traced anew.


def shared_key(monkeypatch):
    """Drafts, tests and residuals draw from one key."""
    original = loop.round_noise

    def round_noise(*arguments):
        noise = original(*arguments)
        one = jnp.exp(-jnp.exp(-noise.residual[:, :1]))
        return noise._replace(uniforms=jnp.broadcast_to(one, noise.uniforms.shape))

    monkeypatch.setattr(loop, "round_noise", round_noise)
    monkeypatch.setattr(loop.Noise, "draft", lambda self, number, ids: self.residual)


def reused_uniform(monkeypatch):
    """One uniform serves every test of a round."""
    original = loop.round_noise

    def round_noise(*arguments):
        noise = original(*arguments)
        return noise._replace(
            uniforms=jnp.broadcast_to(noise.uniforms[:, :1], noise.uniforms.shape)
        )

    monkeypatch.setattr(loop, "round_noise", round_noise)


def keys_by_position(monkeypatch):
    """Draft noise belongs to the position, whichever block it is drafted in."""
    original, of_round = loop.round_noise, loop.Noise.draft

    def round_noise(keys, starts, G, V):
        return original(keys, starts, G, V)._replace(words=(keys, starts))

    def draft(self, number, ids):
        keys, starts = self.words
        return of_round(original(keys, starts + number, 1, self.residual.shape[1]), 0, ids)

    monkeypatch.setattr(loop, "round_noise", round_noise)
    monkeypatch.setattr(loop.Noise, "draft", draft)


def argmax_draft(monkeypatch):
    """Drafts are the most probable tokens, but are verified as if they had been drawn."""
    monkeypatch.setattr(
        loop, "draw", lambda probs, noise, ids=None: jnp.argmax(probs, axis=-1).astype(jnp.int32)
    )


def batch_minimum(monkeypatch):
    """The batch advances by the smallest number accepted; rows that had accepted more draw from the residual there."""
    original = loop.verify_rows

    def verify_rows(rule, drafts, q, p, counts, noise, ids):
        verdict = original(rule, drafts, q, p, counts, noise, ids)
        least = jnp.where(counts > 0, verdict.accepted, drafts.shape[1]).min()
        accepted = jnp.minimum(verdict.accepted, least)
        rest = verification.residual(p[:, least], q[:, jnp.minimum(least, q.shape[1] - 1)])
        again = verification.draw(rest, jnp.roll(noise.residual, 1, axis=1))
        return verdict._replace(
            accepted=accepted,
            next_token=jnp.where(verdict.accepted > least, again, verdict.next_token),
        )

    monkeypatch.setattr(loop, "verify_rows", verify_rows)


def filter_before_temperature(monkeypatch):
    """The target's filter looks at probabilities of temperature 1."""

    def wrong(logits, sampling):
        filtered = probabilities(
            logits, Sampling(jnp.float32(1.0), sampling.top_k, sampling.top_p, sampling.min_p)
        )
        return probabilities(
            jnp.where(filtered > 0, logits, -jnp.inf), Sampling(sampling.temperature)
        )

    monkeypatch.setattr(loop, "probabilities", wrong)


def residual_is_target(monkeypatch):
    """After a rejection a token is drawn from the target's whole distribution."""
    monkeypatch.setattr(verification, "residual", lambda p, q: p)


def discarded_draft(monkeypatch):
    """A draft is dropped because of what it is: the decision to stop comes after the draw."""
    original = loop.verify_rows

    def verify_rows(rule, drafts, q, p, counts, noise, ids):
        unsure = jnp.take_along_axis(q, drafts[..., None], axis=-1)[..., 0] < 0.4
        first = jnp.where(unsure.any(axis=1), jnp.argmax(unsure, axis=1), q.shape[1])
        return original(rule, drafts, q, p, jnp.minimum(counts, first), noise, ids)

    monkeypatch.setattr(loop, "verify_rows", verify_rows)


def table_model(probs):
    """A model whose distribution of the next token depends on the last token alone: row by row
    `probs`, [V, V]."""
    config = dataclasses.replace(model(1, 1).config, width=lossless.V)
    params = jax.tree.map(jnp.zeros_like, init_params(config, jax.random.key(0)))
    # Blocks that add nothing; the final norm turns the rows of an identity into twice those.
    params["embedding"].set_value(jnp.eye(lossless.V))
    params["final_norm"]["scale"].set_value(jnp.ones(lossless.V))
    params["head"].set_value(jnp.log(jnp.maximum(jnp.asarray(probs), 1e-9)) / 2)
    return Model(config, params)


def look_ahead(monkeypatch):
    """A schedule that first draws a draft, then ranks it by how sure the drafter is *after* it, and
    verifies it only if that is high."""
    original = loop.verify_rows

    def verify_rows(rule, drafts, q, p, counts, noise, ids):
        sure = q[:, 1].max(axis=-1) > 0.9
        return original(rule, drafts, q, p, jnp.where(sure, 1, 0), noise, ids)

    monkeypatch.setattr(loop, "verify_rows", verify_rows)


@pytest.mark.parametrize("mutate", [None, look_ahead], ids=["right", "looks ahead"])
@pytest.mark.slow
def test_a_schedule_must_not_look_ahead(monkeypatch, fresh_loop, mutate):
    """The published counterexample: p = (0.7, 0.3) and q = (0.5, 0.5), where a draft is verified only
    if it is token 0, because the drafter is sure of what follows that and unsure after token 1. Token
    0 then comes with probability 0.5 + 0.5·0.7 = 0.85. A rule sees confidences before the draw only."""
    p, q = [0.7, 0.3, 0, 0], [0.5, 0.5, 0, 0]
    target, draft = table_model([p] * 4), table_model([[1, 0, 0, 0], q, q, q])
    if mutate is not None:
        mutate(monkeypatch)
    settings = dict(lookahead=SharedBudget(16_384), max_lookahead=2)
    found = decode_ragged(draft, target, 16_384, **settings)[0].sequences
    value = chi_square(found, outcomes(target, *lossless.PROMPTS[0], PLAIN))
    expected = 0.7 if mutate is None else 0.85
    # Five standard errors of a share of 16,384.
    assert (found[:, 0] == 0).mean() == pytest.approx(expected, abs=5 * 0.46 / 128)
    assert value > ALPHA if mutate is None else value < ALPHA / 1e3


def constant_bonus(monkeypatch):
    """After a full acceptance always the same token comes."""
    original = loop.verify_rows

    def verify_rows(rule, drafts, q, p, counts, noise, ids):
        verdict = original(rule, drafts, q, p, counts, noise, ids)
        return verdict._replace(
            next_token=jnp.where(verdict.accepted == counts, 0, verdict.next_token)
        )

    monkeypatch.setattr(loop, "verify_rows", verify_rows)


@pytest.mark.parametrize(
    "lookahead",
    [pytest.param(4, marks=pytest.mark.slow), pytest.param(7, marks=pytest.mark.release)],
)
def test_a_constant_bonus_token_fails(monkeypatch, fresh_loop, lookahead):
    constant_bonus(monkeypatch)
    assert after_full_acceptance(lookahead, "token", samples=16_384)[0] < ALPHA / 1e3


def negated_target(monkeypatch):
    """The verify pass turns the target's logits round."""
    monkeypatch.setattr(
        loop, "probabilities", lambda logits, sampling: probabilities(-logits, sampling)
    )


@pytest.mark.release
@pytest.mark.parametrize("mutate", ["negated_target", "filter_before_temperature"])
def test_bfloat16_cells_fail_for_a_wrong_target(monkeypatch, fresh_loop, mutate):
    """There the reference is what the run recorded, which must itself be the target's."""
    globals()[mutate](monkeypatch)
    with pytest.raises(AssertionError, match="recorded p differs"):
        list(lossless.check(lossless.Cell(2, "ragged", 0.7, "top-p", "bfloat16", "token"), 8192))


TOKEN, BLOCK = {"verification": "token"}, {"verification": "block"}
# By rule of verification; the first two belong to the full check, the others to the check before a
# release.
MUTATIONS = [
    (shared_key, TOKEN),
    (argmax_draft, BLOCK),
    (residual_is_target, TOKEN),
    (shared_key, BLOCK),
    (reused_uniform, TOKEN),
    (keys_by_position, BLOCK),
    (argmax_draft, TOKEN),
    (batch_minimum, TOKEN),
    (filter_before_temperature, {"sampling": Sampling(0.7, top_p=0.8)}),
    (residual_is_target, BLOCK),
    (discarded_draft, TOKEN),
]


@pytest.mark.parametrize(
    ("mutate", "settings"),
    [
        pytest.param(*m, marks=pytest.mark.slow if n < 2 else pytest.mark.release)
        for n, m in enumerate(MUTATIONS)
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_mutations_of_the_distribution_fail(monkeypatch, fresh_loop, mutate, settings):
    mutate(monkeypatch)
    # Noise used again shows least, for only blocks that follow a dropped draft are touched: there
    # long blocks of a bad draft.
    draft, lookahead = (model(7, 2), 7) if mutate is keys_by_position else (model(1, 1), 4)
    assert min(p_values(draft, model(2, 2), 16_384, lookahead=lookahead, **settings)) < ALPHA / 1e3


def largest_error_of_q(draft, decoded) -> float:
    """Largest difference of a recorded q, at any drafted position, from a full forward pass over what led to it."""
    events, blocks = jax.tree.map(np.asarray, (decoded.events, decoded.blocks))
    tokens, worst = np.asarray(decoded.tokens), 0.0
    rows, rounds = np.nonzero(events.proposed)
    width = tokens.shape[1] + blocks.drafts.shape[2]
    texts = np.zeros((len(rows), width), np.int32)
    for n, (row, number) in enumerate(zip(rows, rounds)):
        start, count = events.start[row, number], events.proposed[row, number]
        texts[n, :start] = tokens[row, :start]
        texts[n, start : start + count] = blocks.drafts[row, number, :count]
    logits, _ = forward(draft.config, draft.params, jnp.asarray(texts))
    full = np.asarray(probabilities(logits, PLAIN))
    for n, (row, number) in enumerate(zip(rows, rounds)):
        start, count = events.start[row, number], events.proposed[row, number]
        found = blocks.draft_probs[row, number, :count]
        worst = max(worst, np.abs(found - full[n, start - 1 : start - 1 + count]).max())
    return worst


def stale_draft_cache(monkeypatch):
    """After a full acceptance the draft never sees its own last token."""

    def first(self, params, state, tokens, lengths, sampling, asking):
        last = (lengths - 1)[:, None]
        logits, state = forward(
            self.config, params, jnp.take_along_axis(tokens, last, axis=1), last, state
        )
        return drafters.model_proposal(logits[:, -1], sampling), state

    monkeypatch.setattr(drafters.ModelDrafter, "first", first)


@pytest.mark.parametrize("mutate", [None, stale_draft_cache], ids=["right", "stale"])
@pytest.mark.slow
def test_cached_q_equals_full_forward_q_at_every_drafted_position(monkeypatch, fresh_loop, mutate):
    """Also over rounds of different lookahead, rows that stopped, and after full acceptances. A stale cache is far off."""
    draft, target = model(1, 1), model(2, 2)
    prompts = np.random.default_rng(0).integers(0, lossless.V, (6, 4))
    if mutate is not None:
        mutate(monkeypatch)
    errors = []
    for rule in (2, ConfidenceThreshold(SURE)):
        decoded = speculate(
            draft, target, prompts, prompt_lengths=[1, 2, 3, 4, 4, 4], new_tokens=[24, 30, 17, 1, 30, 30],
            lookahead=rule, max_lookahead=4, keep_distributions=True,
        )  # fmt: skip
        full = (decoded.events.accepted == decoded.events.proposed) & (decoded.events.proposed > 1)
        assert full.sum() > 2
        errors.append(largest_error_of_q(draft, decoded))
    # Under the threshold the step that finds the draft unsure has fed the last draft: nothing can
    # be stale.
    assert errors[1] < 1e-5
    assert errors[0] < 1e-5 if mutate is None else errors[0] > 1e-2


def dropped_bonus(monkeypatch):
    """A fully accepted round emits its drafts only."""
    original = loop.emit
    monkeypatch.setattr(
        loop,
        "emit",
        lambda rows, new, count, r: original(rows, new, jnp.minimum(count, new.shape[1] - 1), r),
    )


@pytest.mark.parametrize(
    "mutate", [None, pytest.param(dropped_bonus, marks=pytest.mark.slow)], ids=["right", "dropped"]
)
def test_every_round_emits_one_more_than_it_accepts(monkeypatch, fresh_loop, mutate):
    prompts = np.random.default_rng(0).integers(0, lossless.V, (6, 4))
    if mutate is not None:
        mutate(monkeypatch)
    events = speculate(model(1, 1), model(2, 2), prompts, lookahead=2, new_tokens=30).events
    running = (events.emitted > 0) & (events.stop_reason == 0)
    assert bool((events.emitted == events.accepted + 1)[running].all()) == (mutate is None)
