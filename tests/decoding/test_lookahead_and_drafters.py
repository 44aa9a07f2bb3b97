import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.lossless import V, model
from sdsl_jax.decoding import (
    ConfidenceThreshold,
    FixedLookahead,
    NgramDraft,
    OnlineLookahead,
    Sampling,
    SharedBudget,
    autoregress,
    speculate,
)
from sdsl_jax.decoding.lookahead import Candidates
from sdsl_jax.errors import SdslError
from sdsl_jax.theory import optimal_lookahead, speedup

# Between the quartiles of the draft's largest probability.
SURE = 0.75
PROMPTS = np.random.default_rng(0).integers(0, V, (4, 5))


def test_online_lookahead_is_the_closed_form_of_the_running_estimate():
    rule = OnlineLookahead(
        draft_step=0.1, verify_pass=2.0, prior=0.6, prior_tests=4.0, memory=0.5
    ).check(9)
    memory = rule.init(2)
    np.testing.assert_allclose(rule.acceptance(memory), 0.6)
    memory = rule.update(memory, jnp.array([4, 2]), jnp.array([4, 1]))
    memory = rule.update(memory, jnp.array([3, 0]), jnp.array([2, 0]))
    # A row that tests nothing learns nothing and forgets nothing.
    np.testing.assert_allclose(
        rule.acceptance(memory), [(2.4 + 2 + 2) / (4 + 2 + 3), (2.4 + 1) / (4 + 2)], rtol=1e-6
    )
    best = optimal_lookahead(np.asarray(rule.acceptance(memory)), 0.05).lookahead_integer
    np.testing.assert_array_equal(rule.max_drafts(memory, 9), np.clip(np.asarray(best), 0, 9))


def test_online_lookahead_goes_to_0_and_back():
    """A row whose drafts are rejected is switched off, drafts one token in every third round of the
    run, and is switched on again once these are accepted."""
    rule = OnlineLookahead(0.2, prior_tests=1.0, memory=0.8, probe_every=3).check(4)
    memory, chosen, update = rule.init(1), [], jax.jit(OnlineLookahead.update)
    for number in range(60):
        drafts = rule.max_drafts(memory, 4)
        chosen.append(int(drafts[0]))
        tested = jnp.minimum(drafts, 1)
        memory = update(rule, memory, tested, tested * (number >= 30))
    # Past the transient only probes are left, in rounds 2, 5, 8, ….
    assert [i for i in range(12, 30) if chosen[i]] == list(range(14, 30, 3))
    assert max(chosen[12:30]) == 1
    assert min(chosen[45:]) > 1
    always = dataclasses.replace(rule, probe_every=jnp.int32(1))
    switched_off = rule.init(1)._replace(lookahead=jnp.zeros(1))
    assert int(always.max_drafts(switched_off, 4)[0]) == 1


def test_a_lookahead_that_is_cut_short_may_not_pay():
    """At α = 0.8, d = 0.05 and v = 2 the best γ is 9 with S = 1.8. One draft gives 1.8/2.05 < 1."""
    rule = OnlineLookahead(0.05, 2.0, prior=0.8, plain_step=1.0).check(9)
    memory = rule.init(1)
    best = float(optimal_lookahead(0.8, 0.05, 2.0).lookahead_integer)
    assert best > 2
    for most in (1, 2, int(best), int(best) + 3):
        pays = float(speedup(0.8, min(most, best), 0.05, 2.0)) > 1
        assert int(rule.max_drafts(memory, most)[0]) == (min(most, best) if pays else 0)


def brute_force(rule, c, G):
    """The rows whose next draft is among the best that the budget allows, ranked one by one."""
    survival, left = np.asarray(c.survival, float), int(rule.budget) - int(c.drafts.sum())
    ranked = sorted(
        (-(survival[row] ** (1 + j / (int(c.number) + 1))), j, row)
        for row in np.flatnonzero(c.asking)
        for j in range(int(c.max_drafts[row]) - int(c.number))
    )
    return {row for _, j, row in ranked[: max(left, 0)] if j == 0}


def test_a_shared_budget_takes_the_best_survival_first():
    random, rows, G = np.random.default_rng(0), 5, 4
    keep = jax.jit(lambda rule, c: rule.keep_drafting(c, G))
    for _ in range(200):
        number = random.integers(0, G)
        c = Candidates(
            jnp.asarray(random.random(rows) < 0.8),
            jnp.ones(rows),
            # Some of them are equal.
            jnp.asarray(random.choice([0.2, 0.5, 0.9, 1.0, random.random()], rows), jnp.float32),
            jnp.asarray(random.integers(0, number + 1, rows)),
            jnp.int32(number),
            jnp.full(rows, G),
        )
        rule = SharedBudget(int(random.integers(1, 12))).check(G)
        taken = {*np.flatnonzero(np.asarray(keep(rule, c) & c.asking)).tolist()}
        assert taken == brute_force(rule, c, G)


def test_a_shared_budget_is_kept_and_used():
    """Rows share 6 drafts per round: never more, mostly all of them, and not evenly."""
    run = speculate(
        model(1, 1), model(2, 2), PROMPTS, lookahead=SharedBudget(6), max_lookahead=4, new_tokens=24, seed=2
    )  # fmt: skip
    proposed, ran = np.asarray(run.events.proposed), np.asarray(run.events.emitted) > 0
    whole = ran.all(axis=0)
    assert proposed.sum(axis=0).max() == 6
    assert proposed.sum(axis=0)[whole].mean() > 5
    assert {*np.unique(proposed[:, whole])} >= {0, 1, 2, 3}


@pytest.mark.slow
def test_confidence_decides_by_the_distribution_and_not_by_the_draw():
    """Every draft was drawn where the draft was sure enough; the one that was not drawn would have come from an unsure one."""
    run = speculate(
        model(1, 1), model(2, 2), PROMPTS, lookahead=ConfidenceThreshold(SURE), max_lookahead=4, new_tokens=40,
        keep_distributions=True,
    )  # fmt: skip
    counts, q = np.asarray(run.events.proposed), np.asarray(run.blocks.draft_probs)
    drawn = np.arange(4) < counts[..., None]
    assert (q.max(-1)[drawn] >= SURE).all()
    assert set(np.unique(counts[np.asarray(run.events.emitted) > 0])) >= {0, 1, 2}
    assert (
        np.asarray(run.events.emitted)[(counts == 0) & (np.asarray(run.events.start) > 0)] == 1
    ).all()


@pytest.mark.parametrize(
    ("rule", "verification"),
    [
        pytest.param(ConfidenceThreshold(SURE), "block", marks=pytest.mark.slow),
        pytest.param(ConfidenceThreshold(SURE), "token", marks=pytest.mark.release),
        pytest.param(OnlineLookahead(0.2, prior_tests=1.0), "block", marks=pytest.mark.release),
        pytest.param(OnlineLookahead(0.2, prior_tests=1.0), "token", marks=pytest.mark.slow),
        pytest.param(
            OnlineLookahead(0.5, prior_tests=1.0, probe_every=3), "token", marks=pytest.mark.slow
        ),
    ],
)
def test_adaptive_rows_depend_on_their_own_prompt_and_number_only(rule, verification):
    settings = dict(
        lookahead=rule, max_lookahead=3, new_tokens=14, seed=5, verification=verification
    )
    together = np.asarray(speculate(model(1, 1), model(2, 2), PROMPTS, **settings).tokens)
    order = [2, 0, 3, 1]
    shuffled = speculate(model(1, 1), model(2, 2), PROMPTS[order], rows=order, **settings)
    np.testing.assert_array_equal(shuffled.tokens, together[order])
    alone = speculate(model(1, 1), model(2, 2), PROMPTS[2:3], rows=[2], **settings)
    np.testing.assert_array_equal(alone.tokens[0], together[2])


def test_a_fixed_rule_is_a_number():
    settings = dict(new_tokens=10, seed=3)
    one = speculate(model(1, 1), model(2, 2), PROMPTS, lookahead=2, **settings)
    other = speculate(model(1, 1), model(2, 2), PROMPTS, lookahead=FixedLookahead(2), **settings)
    np.testing.assert_array_equal(one.tokens, other.tokens)


def matched(tokens, longest=3, shortest=1):
    """Where a plain search would copy from; None if the suffix occurs nowhere else."""
    for n in range(min(longest, len(tokens) - 1), shortest - 1, -1):
        for at in range(len(tokens) - 1, n - 1, -1):
            if list(tokens[at - n : at]) == list(tokens[len(tokens) - n :]):
                return at
    return None


def test_ngrams_are_found_as_a_plain_search_finds_them():
    random = np.random.default_rng(1)
    first, asking = jax.jit(NgramDraft(6).first), jnp.ones(1, bool)
    for _ in range(200):
        length = int(random.integers(1, 20))
        tokens = np.zeros(24, np.int32)
        tokens[:length] = random.integers(0, 6, length)
        proposal, source = first(
            None,
            jnp.array([-1]),
            jnp.asarray(tokens)[None],
            jnp.array([length]),
            Sampling(),
            asking,
        )
        expected = matched(tokens[:length])
        assert bool(proposal.available[0]) == (expected is not None)
        if expected is not None:
            assert int(source[0]) == expected
            assert proposal.probs.tolist() == [[1]]
            assert proposal.ids.tolist() == [[tokens[expected]]]


def test_ngrams_speed_up_a_text_that_repeats_itself():
    """A greedy target that has run into a cycle is copied with full acceptance."""
    target = model(2, 2)
    plain = autoregress(target, PROMPTS, new_tokens=60, sampling=Sampling(0.0))
    run = speculate(
        NgramDraft(V), target, PROMPTS, lookahead=4, new_tokens=60, sampling=Sampling(0.0)
    )
    np.testing.assert_array_equal(run.tokens, plain.tokens)
    # Each row runs into a cycle sooner or later, and five tokens a round from there on.
    assert int(run.batch_rounds) < 25


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lookahead": ConfidenceThreshold(0.86)}, "needs max_lookahead"),
        ({"lookahead": ConfidenceThreshold(1.5), "max_lookahead": 2}, "threshold is 1.5"),
        ({"lookahead": OnlineLookahead(0.0), "max_lookahead": 2}, "draft step's cost is 0.0"),
        (
            {"lookahead": OnlineLookahead(0.1, prior=1.0), "max_lookahead": 2},
            "prior acceptance is 1.0",
        ),
        ({"lookahead": OnlineLookahead(0.1, memory=0.0), "max_lookahead": 2}, "memory is 0.0"),
        (
            {"lookahead": OnlineLookahead(0.1, plain_step=1.5), "max_lookahead": 2},
            "plain step's cost is 1.5",
        ),
        (
            {"lookahead": OnlineLookahead(0.1, probe_every=0), "max_lookahead": 2},
            "probe_every is 0",
        ),
        ({"lookahead": SharedBudget(0), "max_lookahead": 2}, "shared budget is 0"),
        ({"lookahead": SharedBudget(1.5), "max_lookahead": 2}, "shared budget is 1.5"),
        ({"lookahead": SharedBudget(4)}, "needs max_lookahead"),
        ({"lookahead": OnlineLookahead(0.1), "max_lookahead": 0}, "max_lookahead is 0"),
    ],
)
def test_wrong_rules_are_refused(changes, message):
    with pytest.raises(SdslError, match=message):
        speculate(model(1, 1), model(2, 2), PROMPTS, new_tokens=3, **changes)


def test_wrong_ngrams_are_refused():
    with pytest.raises(SdslError, match="from 3 to 2 tokens"):
        NgramDraft(4, longest=2, shortest=3)
