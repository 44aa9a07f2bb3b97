"""A nested draft that chooses its size in every row and round."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks.lossless import check_kind, kind_cells, model, nested
from sdsl_jax.decoding import Sampling, speculate
from sdsl_jax.decoding.nested_drafter import NestedDrafter
from sdsl_jax.models import forward

PLAIN = Sampling()
# False alarm of 1e-6 in all, over at most 20 tests.
ALPHA = 1e-6 / 20
LENGTH, WINDOW = 22, 4


def dense(slice_, text):
    return np.asarray(forward(slice_.config, slice_.params, text)[0])


# Compiled, because each call of `lax.cond` outside of `jit` would be a program of its own.
@functools.partial(jax.jit, static_argnums=0)
def first(drafter, params, state, tokens, lengths):
    return drafter.first(params, state, tokens, lengths, PLAIN, lengths > 0)


@functools.partial(jax.jit, static_argnums=0)
def following(drafter, params, state, tokens, lengths, drawn, number):
    return drafter.next(params, state, tokens, lengths, drawn, number, PLAIN, lengths > 0)


@pytest.mark.parametrize("threshold", [1.1, pytest.param(0.0, marks=pytest.mark.slow)])
def test_a_choice_that_never_varies_is_that_slice(threshold):
    """Below every confidence the smaller slice decodes alone, above every one the larger."""
    draft, target = nested(threshold), model(2, 2)
    alone = draft.small if threshold == 0.0 else draft.large
    prompts = np.asarray([[1, 0, 3], [2, 2, 0]])
    settings = dict(lookahead=3, new_tokens=12, seed=5)
    one, other = (speculate(d, target, prompts, **settings) for d in (draft, alone))
    np.testing.assert_array_equal(one.tokens, other.tokens)
    np.testing.assert_array_equal(one.events.verified, other.events.verified)


@pytest.mark.slow
@pytest.mark.parametrize("rows", [6, 1])
def test_drafts_after_any_rounds_are_those_of_the_chosen_slice(rows):
    """Of rows that run together, where both slices run in most rounds, and of single ones. Random
    acceptances and rejections, driven by hand, with slices that rest for rounds: the cached q of the
    chosen slice is its dense one."""
    texts = jnp.asarray(np.random.default_rng(0).integers(0, 4, (6, LENGTH)))
    rested = sum(_run(texts[i : i + rows]) for i in range(0, 6, rows))
    assert rested > 3


def _run(text):
    """Checks every proposal; returns how often a row went on with the smaller slice after the larger one."""
    draft = nested()
    drafter = NestedDrafter(draft.small.config, draft.large.config, WINDOW)
    small, large = dense(draft.small, text), dense(draft.large, text)
    random = np.random.default_rng(1)
    lengths, rows, rested = jnp.asarray([1, 2, 4, 3, 1, 4])[: len(text)], np.arange(len(text)), 0
    state = drafter.start(draft.params, text[:, :4], LENGTH + WINDOW + 1)
    chosen = []
    while int(lengths.max()) + WINDOW < LENGTH:
        buffer = jnp.where(jnp.arange(LENGTH)[None] < lengths[:, None], text, 0)
        proposal, state = first(drafter, draft.params, state, buffer, lengths)
        confidence = np.asarray(jax.nn.softmax(small[rows, lengths - 1]).max(axis=-1))
        by_large = confidence < draft.threshold
        np.testing.assert_array_equal(state.by_large, by_large)
        rested += bool(chosen) and int((by_large & ~chosen[-1]).sum())
        chosen.append(by_large)
        kept = random.integers(0, WINDOW, len(text))
        for k in range(1, WINDOW + 1):
            at = lengths + k - 2
            expected = jax.nn.softmax(np.where(by_large[:, None], large[rows, at], small[rows, at]))
            known = k - 1 <= kept
            np.testing.assert_allclose(proposal.probs[known], expected[known], atol=2e-5)
            # Drafts that are rejected are other tokens than the text's.
            drawn = (text[rows, lengths + k - 1] + (k > kept)) % 4
            proposal, state = following(
                drafter, draft.params, state, buffer, lengths, drawn, jnp.int32(k)
            )
        lengths = lengths + kept + 1
    return rested


# The kind whose rows have most to do with each other; the others are looked at before a release.
@pytest.mark.slow
def test_rows_do_not_see_each_other():
    draft, target = nested(), model(2, 2)
    prompts = np.asarray([[1, 0, 3], [2, 2, 0], [0, 3, 1]])
    settings = dict(lookahead=3, new_tokens=8, seed=1)
    together = speculate(draft, target, prompts, rows=np.arange(3), **settings)
    for row in range(3):
        alone = speculate(draft, target, prompts[row : row + 1], rows=np.asarray([row]), **settings)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(
            cell,
            marks=pytest.mark.slow
            if (cell.lookahead, cell.verification, cell.temperature) == (2, "block", 0.7)
            else pytest.mark.release,
        )
        for cell in kind_cells(("nested",))
    ],
    ids=str,
)
def test_joint_distribution(cell):
    """Ragged rows that stop at different times, against exact enumeration."""
    assert min(check_kind(cell, 20_000)) > ALPHA


def forgets(monkeypatch):
    """A slice that has rested goes on as if it had read everything."""
    right = NestedDrafter.first

    def up_to_date(self, params, state, tokens, lengths, *others):
        return right(self, params, state._replace(seen=lengths - 1), tokens, lengths, *others)

    monkeypatch.setattr(NestedDrafter, "first", up_to_date)


def rewrites_two(monkeypatch):
    """The smaller slice reads the last two tokens, and not those that the larger one drafted."""
    right = NestedDrafter.first

    def two(self, *arguments):
        return right(dataclasses.replace(self, window=2), *arguments)

    monkeypatch.setattr(NestedDrafter, "first", two)


@pytest.mark.slow
@pytest.mark.parametrize("fault", [forgets, rewrites_two])
def test_a_fault_is_found(monkeypatch, fault):
    fault(monkeypatch)
    first.clear_cache()
    with pytest.raises(AssertionError):
        test_drafts_after_any_rounds_are_those_of_the_chosen_slice(1)
    first.clear_cache()
