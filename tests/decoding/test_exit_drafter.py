"""An early exit that shares its blocks with the target: it decodes as it does alone, and losslessly."""

import chex
import jax
import numpy as np
import pytest

from benchmarks.lossless import check_kind, exit_draft, kind_cells, model
from sdsl_jax.decoding import ConfidenceThreshold, EarlyExit, Model, speculate
from sdsl_jax.decoding.exit_drafter import ExitDrafter, shared_blocks
from sdsl_jax.errors import SdslError
from sdsl_jax.models.cuts import early_exit

# False alarm of 1e-6 in all, over at most 20 tests.
ALPHA = 1e-6 / 20
PROMPTS = np.asarray([[1, 0, 3, 2, 1], [2, 2, 0, 0, 0], [0, 3, 1, 1, 0]])
SETTINGS = dict(prompt_lengths=np.asarray([5, 1, 3]), new_tokens=np.asarray([9, 12, 7]), seed=5)


@pytest.mark.parametrize(
    ("blocks", "rule"),
    [(2, 3), pytest.param(1, ConfidenceThreshold(0.5), marks=pytest.mark.slow)],
)
def test_sharing_changes_nothing(blocks, rule):
    """The same tokens and events as the same model that runs by itself, and a target that runs whole,
    in rows that draft and accept different numbers of tokens."""
    some, target = exit_draft(blocks), model(2, 2)
    settings = SETTINGS | {"lookahead": rule, "max_lookahead": 3}
    shared = speculate(some, target, PROMPTS, **settings)
    alone = speculate(Model(some.config, some.params), target, PROMPTS, **settings)
    np.testing.assert_array_equal(shared.tokens, alone.tokens)
    assert len({*np.asarray(shared.events.verified).ravel()}) > 2
    chex.assert_trees_all_close(shared.events, alone.events, atol=1e-5)


def test_an_exit_after_the_last_block_is_the_target():
    """Everything is accepted: the exit's q is the target's p."""
    target = model(2, 2)
    config, params = early_exit(target.config, target.params, 2)
    decoded = speculate(EarlyExit(config, params, 2), target, PROMPTS, lookahead=3, **SETTINGS)
    events = jax.tree.map(np.asarray, decoded.events)
    ran = events.emitted > 0
    assert ran.sum() > 5
    np.testing.assert_array_equal(events.verified[ran], events.proposed[ran])
    expected = events.expected_accepted[ran]
    np.testing.assert_allclose(expected.sum(axis=-1), events.proposed[ran], atol=1e-5)


def test_what_is_shared_is_compared():
    some, target = exit_draft(2), model(2, 2)
    assert shared_blocks(Model(some.config, some.params), target) == 1
    assert shared_blocks(model(3, 2), target) == 0
    with pytest.raises(SdslError, match="share 2 blocks with its target; 1 of its blocks are"):
        speculate(some._replace(shared=2), target, PROMPTS, lookahead=2, new_tokens=3)


@pytest.mark.release
def test_rows_do_not_see_each_other():
    some, target = exit_draft(2), model(2, 2)
    prompts = PROMPTS[:, :3]
    settings = dict(lookahead=3, new_tokens=8, seed=1)
    together = speculate(some, target, prompts, rows=np.arange(3), **settings)
    for row in range(3):
        alone = speculate(some, target, prompts[row : row + 1], rows=np.asarray([row]), **settings)
        np.testing.assert_array_equal(alone.tokens[0], together.tokens[row])


@pytest.mark.parametrize(
    "cell",
    [
        pytest.param(
            cell,
            marks=pytest.mark.slow
            if (cell.kind, cell.lookahead, cell.verification, cell.temperature)
            in (("early-exit", 2, "block", 0.7), ("early-exit-trained", 4, "token", 1.0))
            else pytest.mark.release,
        )
        for cell in kind_cells(("early-exit", "early-exit-trained", "pruned"))
    ],
    ids=str,
)
def test_joint_distribution(cell):
    """Ragged rows that stop at different times, against exact enumeration."""
    assert min(check_kind(cell, 20_000)) > ALPHA


@pytest.mark.slow
def test_a_fault_is_found(monkeypatch, fresh_loop):
    """The last draft does not pass the shared blocks before the verify pass."""
    left_out = lambda self, p, state, lengths, drawn, number: (state.streams, state)  # noqa: E731
    monkeypatch.setattr(ExitDrafter, "streams", left_out)
    with pytest.raises(AssertionError):
        test_sharing_changes_nothing(2, 3)
