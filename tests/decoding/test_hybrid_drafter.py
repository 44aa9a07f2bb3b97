"""N-grams first, and another draft where none matches."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.lossless import KindCell, V, check_kind, head, hybrid, kind_cells, model, nested
from sdsl_jax.decoding import (
    EarlyExit,
    Head,
    HybridDraft,
    Model,
    NestedDraft,
    NgramDraft,
    Sampling,
    loop,
    speculate,
)
from sdsl_jax.decoding.decode import drafter_of
from sdsl_jax.decoding.drafters import ModelDrafter, Proposal
from sdsl_jax.decoding.hybrid_drafter import HybridDrafter, HybridState
from sdsl_jax.errors import SdslError
from sdsl_jax.models import ModelConfig, forward, outputs
from sdsl_jax.models.feature_head import unrolled

PLAIN = Sampling()
# False alarm of 1e-6 in all, over at most 20 tests.
ALPHA = 1e-6 / 20
LENGTH, WINDOW = 40, 4
# No text of these tests is this long.
NEVER = NgramDraft(V, 99, 99)


# Compiled, because each call of a loop outside of `jit` would be a program of its own.
@functools.partial(jax.jit, static_argnums=0)
def first(drafter, params, state, tokens, lengths, asking):
    return drafter.first(params, state, tokens, lengths, PLAIN, asking)


@functools.partial(jax.jit, static_argnums=0)
def following(drafter, params, state, tokens, lengths, drawn, number, asking):
    return drafter.next(params, state, tokens, lengths, drawn, number, PLAIN, asking)


@functools.partial(jax.jit, static_argnums=0)
def observe(drafter, params, state, start, features):
    return drafter.observe(params, state, start, features)


def has_match(text, longest, shortest):
    """Whether an n-gram at the end of a text occurs earlier in it."""
    return any(
        list(text[-n:]) == list(text[at - n : at])
        for n in range(shortest, longest + 1)
        for at in range(n, len(text))
    )


@dataclass(frozen=True)
class Clerk:
    """A fallback whose state counts how many tokens it caught up with, and its first and later steps."""

    taps, shared_blocks, parts, position_limit = (), 0, 1, 999

    def start(self, params, prompts, capacity, features=None):
        return jnp.zeros(3, jnp.int32)

    def catch_up(self, params, state, tokens, lengths, behind):
        return state.at[0].set(jnp.maximum(behind, 0))

    def first(self, params, state, tokens, lengths, sampling, asking):
        return self._uniform(len(tokens)), state.at[1].add(1)

    def next(self, params, state, tokens, lengths, drawn, number, sampling, asking):
        return self._uniform(len(tokens)), state.at[2].add(1)

    def _uniform(self, rows):
        yes = jnp.ones(rows, bool)
        return Proposal(jnp.full((rows, V), 1 / V), jnp.ones(rows), yes, yes)


class Step(NamedTuple):
    """A step of a round: its number from 1, what was proposed, the state after it, tokens of each row,
    rows that ask, and how many drafts of each row will be kept."""

    number: int
    proposal: Proposal
    state: HybridState
    lengths: np.ndarray
    asking: np.ndarray
    kept: np.ndarray


def rounds_by_hand(drafter, params, text, features=None, seed=1):
    """Rounds of three drafts over known texts with random acceptances, step by step. All rows but the
    last one stop halfway. What the target shows of rejected tokens is poisoned."""
    random, rows = np.random.default_rng(seed), np.arange(len(text))
    lengths = np.resize([3, 5, 4, 2], len(text))
    told = None if features is None else features[:, :5]
    state = drafter.start(params, jnp.asarray(text[:, :5]), LENGTH + WINDOW + 1, told)
    while lengths.max() + WINDOW < LENGTH:
        asking = (lengths < LENGTH // 2) | (rows == len(text) - 1)
        kept = random.integers(0, WINDOW, len(text))
        buffer = np.where(np.arange(LENGTH)[None] < lengths[:, None], text, 0)
        common = buffer, lengths
        proposal, state = first(drafter, params, state, *common, asking)
        yield Step(1, proposal, state, lengths, asking, kept)
        for k in range(1, WINDOW - 1):
            # Drafts that are rejected are other tokens than the text's.
            drawn = (text[rows, lengths + k - 1] + (k > kept)) % V
            proposal, state = following(drafter, params, state, *common, drawn, np.int32(k), asking)
            yield Step(k + 1, proposal, state, lengths, asking, kept)
        if features is not None:
            at = lengths[:, None] - 1 + np.arange(WINDOW)
            seen = np.arange(WINDOW) <= np.where(asking, kept, 0)[:, None]
            shown = jnp.where(seen[..., None], features[rows[:, None], at], jnp.nan)
            state = observe(drafter, params, state, jnp.asarray(lengths - 1), shown)
        lengths = lengths + np.where(asking, kept + 1, 0)


@pytest.mark.slow
def test_the_fallback_runs_where_a_row_needs_it_and_has_then_read_every_row():
    """Against a plain count of what a cache holds. Where the fallback ran in the round before, it has
    nothing to catch up with."""
    text = np.random.default_rng(0).integers(0, V, (3, LENGTH))
    drafter = HybridDrafter(NgramDraft(V, 3, 2), Clerk(), 2)
    held: list[set[int]] = [set(range(5))] * 3
    before, ran, rested = np.zeros(3, int), True, 0
    for k, proposal, state, lengths, asking, kept in rounds_by_hand(drafter, None, text):
        now = np.asarray(state.fallback)
        if k == 1:
            matched = np.asarray([has_match(t[:n], 3, 2) for t, n in zip(text, lengths)])
            alone = asking & ~matched
            np.testing.assert_array_equal(state.by_fallback, alone)
            needed = alone.any()
            assert now[1] - before[1] == needed
            # The last token of a row was never drafted.
            held = [h & set(range(n - 1)) for h, n in zip(held, lengths)]
            if needed:
                held = [h | set(range(n - 2 - now[0], n)) for h, n in zip(held, lengths)]
                assert all(set(range(n)) <= h for h, n in zip(held, lengths))
                # N-grams that draft one token more may leave it one token behind.
                assert now[0] <= 1 or not ran
                rested += int(now[0] > 0)
            ran = needed
        else:
            # The fallback's own lookahead is 2; n-grams go on to the end.
            assert now[2] - before[2] == (needed and k == 2)
            if needed and k == 2:
                held = [h | {n} if a else h for h, n, a in zip(held, lengths, kept)]
        # Nobody asks for what follows the drafts of rows that are done.
        expected = matched | (alone & (k <= 2))
        np.testing.assert_array_equal(proposal.available[asking], expected[asking])
        assert proposal.finite[asking].all()
        before = now
    assert rested > 2


def test_wrong_hybrids_are_refused():
    config = ModelConfig(V, 8, 1, 2, 1, 4, 12)
    small = Model(config, None)
    for draft, message in (
        (hybrid(EarlyExit(*small, 1)), "give an early exit as the model it is"),
        (
            HybridDraft(NgramDraft(V + 1), small),
            "have 5 tokens and the draft to fall back on 4",
        ),
        (HybridDraft(NgramDraft(V), small, 0), "the fallback's lookahead is 0"),
    ):
        with pytest.raises(SdslError, match=message):
            drafter_of(draft, small, 3)


def same_run(one, other):
    """Tokens, drafts and decisions are equal, and so are distributions up to the last bits, since XLA
    fuses other programs otherwise."""
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.blocks.drafts, other.blocks.drafts)
    for name in ("start", "proposed", "verified", "emitted"):
        a, b = getattr(one.events, name), getattr(other.events, name)
        np.testing.assert_array_equal(a, b, err_msg=name)
    for name in ("draft_probs", "target_probs"):
        a, b = getattr(one.blocks, name), getattr(other.blocks, name)
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-6, err_msg=name)


SETTINGS = dict(lookahead=3, new_tokens=[12, 9], seed=5, keep_distributions=True)


@pytest.mark.slow
@pytest.mark.parametrize(
    "fallback",
    [
        lambda: model(1, 1),
        pytest.param(head, marks=pytest.mark.release),
        pytest.param(lambda: head(parallel=2), marks=pytest.mark.release),
    ],
    ids=["model", "head", "parallel-head"],
)
def test_ngrams_that_never_match_leave_the_fallback_alone(fallback):
    prompts = np.asarray([[1, 0, 3], [2, 2, 0]])
    settings = SETTINGS | dict(prompt_lengths=[3, 1])
    alone = speculate(fallback(), model(2, 2), prompts, **settings)
    both = speculate(HybridDraft(NEVER, fallback()), model(2, 2), prompts, **settings)
    same_run(both, alone)
    ran = np.asarray(both.events.emitted) > 0
    np.testing.assert_array_equal(both.events.drafted_by, ran)


@pytest.mark.slow
def test_a_fallback_that_is_never_reached_does_not_run():
    """Every token has occurred, so every row always matches. Broken weights of the fallback change
    nothing."""
    prompts = np.asarray([[0, 1, 2, 3, 1], [3, 2, 1, 0, 0]])
    broken = model(1, 1)
    broken = broken._replace(params=jax.tree.map(lambda x: jnp.nan * x, broken.params))
    alone = speculate(NgramDraft(V), model(2, 2), prompts, **SETTINGS)
    both = speculate(hybrid(broken), model(2, 2), prompts, **SETTINGS)
    same_run(both, alone)
    assert not np.asarray(both.events.drafted_by).any()


def drafts_of(fallback, text):
    """The fallback's distribution as draft k of a round, after some positions of some rows, and the
    features of the target that it reads."""
    if isinstance(fallback, Head):
        target = model(2, 2)
        features = outputs(target.config, target.params, text, taps=fallback.config.taps).features
        q = jax.nn.softmax(unrolled(fallback.config, fallback.params, text, features, WINDOW))
        return lambda k, rows, at: np.asarray(q[k - 1, rows, at]), features
    if isinstance(fallback, NestedDraft):
        small, large = (
            np.asarray(jax.nn.softmax(forward(m.config, m.params, text)[0]))
            for m in (fallback.small, fallback.large)
        )

        def chosen(k, rows, at):
            by_large = small[rows, at - k + 1].max(axis=-1) < fallback.threshold
            return np.where(by_large[:, None], large[rows, at], small[rows, at])

        return chosen, None
    q = np.asarray(jax.nn.softmax(forward(fallback.config, fallback.params, text)[0]))
    return lambda k, rows, at: q[rows, at], None


@pytest.mark.slow
@pytest.mark.parametrize(
    "fallback", [lambda: model(1, 1), head, nested], ids=["model", "head", "nested"]
)
def test_drafts_after_any_rounds_are_those_of_the_chosen_draft(fallback):
    """Of rows that run together and of a single one, whose fallback rests whenever it matches."""
    text = np.random.default_rng(0).integers(0, V, (4, LENGTH))
    for rows in (4, 1):
        rested, used = check_drafts(fallback(), text[:rows])
        assert min(used, rested) >= 4


def check_drafts(fallback, text):
    """Checks every draft; returns how many rounds no row and some row fell back in."""
    draft, rows = hybrid(fallback, shortest=2), np.arange(len(text))
    drafter = drafter_of(draft, model(2, 2), WINDOW - 1)
    expected, features = drafts_of(fallback, text)
    counts = [0, 0]
    for k, proposal, state, lengths, asking, kept in rounds_by_hand(
        drafter, draft.params, text, features
    ):
        q = expected(k, rows, lengths + k - 2)
        by = np.asarray(state.by_fallback)
        counts[int(by.any())] += k == 1
        checked = by & (k - 1 <= kept)
        np.testing.assert_allclose(proposal.probs[checked], q[checked], atol=2e-5)
        copies = proposal.probs[asking & ~by]
        np.testing.assert_array_equal(np.sort(copies), np.eye(V)[[-1] * len(copies)])
    return counts


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(
            cell,
            marks=pytest.mark.slow if str(cell) == "hybrid-2-0.7-block" else pytest.mark.release,
        )
        for cell in kind_cells(("hybrid", "hybrid-head"))
    ],
    ids=str,
)
def test_joint_distribution(cell):
    """Ragged rows that stop at different times, against exact enumeration."""
    assert min(check_kind(cell, 20_000)) > ALPHA


def does_not_catch_up(monkeypatch):
    """A fallback that has rested goes on as if it had read everything."""
    monkeypatch.setattr(ModelDrafter, "catch_up", lambda self, params, state, *_: state)


def counts_rejected_drafts(monkeypatch):
    """What the fallback was fed counts as read, whether or not the row kept it."""
    right = HybridDrafter.next

    def next_(self, params, state, tokens, lengths, *others):
        proposal, after = right(self, params, state, tokens, lengths, *others)
        return proposal, after._replace(known=after.known + 2)

    monkeypatch.setattr(HybridDrafter, "next", next_)


def forget_programs():
    for program in (first, following):
        program.clear_cache()


@pytest.mark.slow
@pytest.mark.parametrize("fault", [does_not_catch_up, counts_rejected_drafts])
def test_a_fallback_that_missed_tokens_is_found(monkeypatch, fault):
    fault(monkeypatch)
    forget_programs()
    text = np.random.default_rng(0).integers(0, V, (1, LENGTH))
    with pytest.raises(AssertionError, match="Not equal to tolerance"):
        check_drafts(model(1, 1), text)
    forget_programs()


def chooses_by_the_draft(monkeypatch):
    """The fallback draws its first draft and gives way to an n-gram where that is its favourite token."""
    right = loop._draft

    def peeking(*arguments):
        drafts, state, number = right(*arguments)
        drawn, q = drafts.tokens[:, 0], drafts.probs[:, 0]
        gives_way = state.by_fallback & (drawn == jnp.argmax(q, axis=-1))
        copied = jnp.where(gives_way, (drawn + 1) % V, drawn)
        q = jnp.where(gives_way[:, None], jax.nn.one_hot(copied, V), q)
        tokens, probs = drafts.tokens.at[:, 0].set(copied), drafts.probs.at[:, 0].set(q)
        return drafts._replace(tokens=tokens, probs=probs), state, number

    monkeypatch.setattr(loop, "_draft", peeking)


@pytest.mark.slow
def test_a_choice_by_what_was_drafted_is_found(monkeypatch, fresh_loop):
    chooses_by_the_draft(monkeypatch)
    cell = KindCell("hybrid", 1, 1.0, "token")
    assert min(check_kind(cell, 20_000)) < ALPHA / 1e3
