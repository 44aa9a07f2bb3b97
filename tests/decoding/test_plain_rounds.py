"""Rounds in which no row drafts: one plain step each, which the drafter catches up with later."""

from dataclasses import dataclass

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.lossless import KINDS, V, model
from sdsl_jax.decoding import NgramDraft, OnlineLookahead, autoregress, loop, speculate
from sdsl_jax.decoding.drafters import ModelDrafter
from sdsl_jax.decoding.exit_drafter import ExitDrafter
from sdsl_jax.decoding.feature_drafter import FeatureDrafter
from sdsl_jax.decoding.nested_drafter import NestedDrafter

PROMPTS = np.random.default_rng(0).integers(0, V, (3, 5))
SETTINGS = dict(prompt_lengths=[5, 1, 3], new_tokens=[38, 42, 40], seed=3)
DRAFTS = KINDS | {"ngrams": lambda: NgramDraft(V)}
# Longer pauses than a chunk of the tokens to catch up with, and shorter ones.
SCHEDULE = np.asarray([0, 2, 0, 3, 0, 0, 0, 1] + [0] * 18 + [3, 3, 0, 2])
# Drafts that belong to the ordinary check, and to the one before a release; the others to the full one.
QUICK, LATE = ("independent",), ("parallel-head", "early-exit", "pruned", "ngrams", "hybrid-head")


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Scheduled:
    """The lookahead of each round from a table. Its memory is the number of the round."""

    table: jax.Array

    pauses = True
    budget = None

    def check(self, max_lookahead):
        return self

    def init(self, rows):
        return jnp.zeros(rows, jnp.int32)

    def max_drafts(self, memory, max_lookahead):
        return self.table[memory % len(self.table)]

    def keep_drafting(self, candidates, max_lookahead):
        return jnp.ones_like(candidates.asking)

    def update(self, memory, tested, accepted):
        return memory + 1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Awake(Scheduled):
    """The same, with the drafter asked and a wide verify pass in every round."""

    pauses = False


def marked(kind):
    slow = pytest.mark.release if kind in LATE else pytest.mark.slow
    return pytest.param(kind, marks=[] if kind in QUICK else slow)


def same_when_paused(kind, rounds=27, **more):
    """Checks that a run has the tokens, drafts and chances of one whose drafter is asked every round."""
    table = jnp.asarray(SCHEDULE)
    settings = SETTINGS | {"max_lookahead": 3} | more
    runs = [
        speculate(DRAFTS[kind](), model(2, 2), PROMPTS, lookahead=rule, **settings)
        for rule in (Scheduled(table), Awake(table))
    ]
    paused, awake = (jax.tree.map(np.asarray, run) for run in runs)
    np.testing.assert_array_equal(paused.tokens, awake.tokens)
    chex.assert_trees_all_close(paused.events, awake.events, atol=1e-5)
    assert int(paused.batch_rounds) >= rounds


@pytest.mark.parametrize("kind", [marked(kind) for kind in DRAFTS])
def test_pauses_change_nothing(kind):
    """In ragged rows, with pauses of one round and of more than a chunk to catch up with."""
    same_when_paused(kind)


@pytest.mark.slow
def test_rows_stop_alike():
    """At stop tokens, in rounds of both kinds."""
    same_when_paused("independent", stop_tokens=(2,), rounds=1)


def recorded(rule):
    settings = SETTINGS | {"max_lookahead": 3, "keep_distributions": True}
    return speculate(model(1, 1), model(2, 2), PROMPTS, lookahead=rule, **settings)


def test_a_rule_that_never_drafts_is_plain_decoding():
    """Token for token, since a round without drafts has the noise of a plain step."""
    never = OnlineLookahead(5.0, prior=0.1, probe_every=1000)
    plain = autoregress(model(2, 2), PROMPTS, **SETTINGS)
    run = recorded(never)
    np.testing.assert_array_equal(run.tokens, plain.tokens)
    events, blocks = jax.tree.map(np.asarray, (run.events, run.blocks))
    assert not events.proposed.any()
    np.testing.assert_array_equal(events.emitted.sum(axis=1), SETTINGS["new_tokens"])
    assert events.emitted.max() == 1
    assert (events.stop_reason == loop.LENGTH).sum() == 3
    # What the target said is kept where a token was drawn, and nowhere else.
    ran = events.emitted > 0
    np.testing.assert_allclose(blocks.target_probs.sum(-1)[..., 0], ran, atol=1e-6)
    assert not blocks.target_probs[:, :, 1:].any()


def test_the_regret_of_a_probe():
    """In whole cycles of rounds, the time that a run takes at given costs is what the formula says
    of the acceptance of its probes."""
    d, v, t, n = 0.9, 1.3, 1.0, 4
    rule = OnlineLookahead(d, v, prior=0.1, prior_tests=1e6, plain_step=t, probe_every=n)
    events = jax.tree.map(np.asarray, recorded(rule).events)
    for row in range(3):
        rounds = (events.emitted[row] > 0).sum() // n * n
        proposed, kept = events.proposed[row, :rounds], events.verified[row, :rounds]
        np.testing.assert_array_equal(proposed, np.tile([0, 0, 0, 1], rounds // n))
        probes, tokens = proposed.sum(), rounds + kept.sum()
        seconds = probes * (d + v) + (rounds - probes) * t
        regret = rule.check(3).probe_regret(kept.sum() / probes)
        assert float(regret) == pytest.approx(1 - tokens * t / seconds, abs=1e-6)
    # The bound that needs no α, and what catching up costs in addition.
    assert float(rule.probe_regret(0.0)) == pytest.approx((d + v - t) / ((n - 1) * t + d + v))
    assert float(rule.probe_regret(0.0, catch_up=0.5)) == pytest.approx(1.7 / 5.7)


@pytest.mark.parametrize(
    ("kind", "drafter"),
    [
        pytest.param("independent", ModelDrafter, marks=pytest.mark.slow),
        pytest.param("early-exit-trained", ExitDrafter, marks=pytest.mark.release),
        pytest.param("head", FeatureDrafter, marks=pytest.mark.release),
        pytest.param("nested", NestedDrafter, marks=pytest.mark.release),
    ],
)
def test_a_drafter_that_does_not_catch_up_is_found(monkeypatch, fresh_loop, kind, drafter):
    traced = []

    def forgets(self, params, state, *_):
        traced.append(self)
        return state

    monkeypatch.setattr(drafter, "catch_up", forgets)
    with pytest.raises(AssertionError):
        same_when_paused(kind)
    assert traced
