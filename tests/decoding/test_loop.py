import contextlib
import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.stats

from sdsl_jax.decoding import (
    Model,
    NgramDraft,
    Sampling,
    autoregress,
    overlap,
    probabilities,
    speculate,
)
from sdsl_jax.decoding import loop as decoding_loop
from sdsl_jax.decoding.sampling import finite_logits
from sdsl_jax.errors import SdslError
from sdsl_jax.measurement.events import summarise
from sdsl_jax.models import ModelConfig, init_params, small_matmul
from sdsl_jax.models import forward as eager_forward

forward = jax.jit(eager_forward, static_argnums=0)

V = 6


def make(seed: int, layers: int = 1, scale: float = 3.0) -> Model:
    """A random model whose distributions are far from uniform."""
    config = ModelConfig(
        vocab_size=V, width=8, layers=layers, heads=2, kv_heads=1, head_dim=4, hidden=12
    )
    params = jax.tree.map(lambda x: x * scale, init_params(config, jax.random.key(seed)))
    return Model(config, params)


@pytest.fixture(scope="module")
def draft():
    return make(1)


@pytest.fixture(scope="module")
def target():
    return make(2, layers=2)


def exact_joint(target: Model, prompt: list[int], length: int, temperature: float) -> np.ndarray:
    """P of every continuation of `length` tokens, by full forward passes, float64 [V^length]."""
    continuations = np.asarray(list(np.ndindex(*(V,) * length)))
    tokens = np.concatenate([np.tile(prompt, (len(continuations), 1)), continuations], axis=1)
    logits, _ = forward(target.config, target.params, jnp.asarray(tokens))
    probs = np.asarray(probabilities(logits, Sampling(temperature)), float)
    at = np.arange(len(prompt) - 1, len(prompt) + length - 1)
    return np.take_along_axis(probs[:, at], continuations[:, :, None], axis=2)[..., 0].prod(axis=1)


PROMPTS = ([3], [1, 4, 0, 2])


@pytest.mark.release
def test_joint_distribution_with_many_samples(draft, target):
    """As below, with 200,000 samples of each prompt: a bias of half a percent in a common sequence would show."""
    check_joint_distribution(draft, target, 4, temperature=1.0, rows=8192, runs=49)


@pytest.mark.parametrize(
    ("lookahead", "temperature"),
    [
        pytest.param(1, 1.0, marks=pytest.mark.slow),
        (2, 0.7),
        pytest.param(4, 1.0, marks=pytest.mark.slow),
    ],
)
def test_joint_distribution_through_ragged_caches(draft, target, lookahead, temperature):
    """Three tokens after prompts of different lengths in one batch, against all 216 sequences. χ², false alarm 1e-6 each."""
    check_joint_distribution(draft, target, lookahead, temperature, rows=4096, runs=8)


@pytest.mark.slow
@pytest.mark.usefixtures("compiled_product")
def test_joint_distribution_by_products_of_few_rows(draft, target, monkeypatch):
    """As above, with every product of every pass by `small_matmul`: two rows of five tokens at most."""
    monkeypatch.setattr(small_matmul, "_MOST_ROWS", ((1, 16),))
    jax.clear_caches()
    check_joint_distribution(draft, target, 2, 0.7, rows=2, runs=8000)
    jax.clear_caches()


def check_joint_distribution(draft, target, lookahead, temperature, rows, runs):
    prompts = np.zeros((rows, 4), np.int32)
    lengths = np.where(np.arange(rows) % 2 == 0, 1, 4)
    for kind, prompt in enumerate(PROMPTS):
        prompts[np.arange(rows) % 2 == kind, : len(prompt)] = prompt
    counts = np.zeros((2, V**3))
    for run in range(runs):
        decoded = speculate(
            draft,
            target,
            prompts,
            prompt_lengths=lengths,
            lookahead=lookahead,
            max_lookahead=max(4, lookahead),
            new_tokens=3,
            sampling=Sampling(temperature),
            seed=run,
        )
        tokens = np.asarray(decoded.tokens)
        for kind, length in enumerate((1, 4)):
            emitted = tokens[lengths == length, length : length + 3]
            counts[kind] += np.bincount(np.ravel_multi_index(emitted.T, (V,) * 3), minlength=V**3)
    for kind, prompt in enumerate(PROMPTS):
        expected = exact_joint(target, list(prompt), 3, temperature) * rows * runs / 2
        rare = expected < 5
        observed = np.append(counts[kind][~rare], counts[kind][rare].sum())
        expected = np.append(expected[~rare], expected[rare].sum())
        statistic = ((observed - expected) ** 2 / expected).sum()
        assert scipy.stats.chi2.sf(statistic, len(expected) - 1) > 1e-6


def test_greedy_speculation_equals_greedy_decoding(draft, target):
    prompts = np.random.default_rng(0).integers(0, V, (5, 7))
    plain = autoregress(target, prompts, new_tokens=20, sampling=Sampling(0.0))
    for lookahead in (1, 3):
        decoded = speculate(
            draft,
            target,
            prompts,
            lookahead=lookahead,
            max_lookahead=3,
            new_tokens=20,
            sampling=Sampling(0.0),
        )
        np.testing.assert_array_equal(decoded.tokens, plain.tokens)


@pytest.mark.slow
def test_a_row_depends_on_its_own_prompt_and_number_only(draft, target):
    prompts = np.random.default_rng(1).integers(0, V, (4, 5))
    lengths = np.array([5, 2, 4, 3])
    prompts = np.where(np.arange(5) < lengths[:, None], prompts, 0)
    arguments = dict(lookahead=3, new_tokens=12, seed=5)
    together = np.asarray(
        speculate(draft, target, prompts, prompt_lengths=lengths, **arguments).tokens
    )
    order = np.array([2, 0, 3, 1])
    shuffled = speculate(
        draft, target, prompts[order], prompt_lengths=lengths[order], rows=order, **arguments
    )
    np.testing.assert_array_equal(shuffled.tokens, together[order])
    for row in range(4):
        alone = speculate(
            draft,
            target,
            prompts[row : row + 1],
            prompt_lengths=lengths[row : row + 1],
            rows=[row],
            **arguments,
        )
        np.testing.assert_array_equal(alone.tokens[0], together[row])


def test_a_perfect_draft_is_always_accepted(target):
    """Draft = target: every draft is kept, so caches of both stay right through full acceptances."""
    prompts = np.random.default_rng(2).integers(0, V, (6, 4))
    decoded = speculate(target, target, prompts, lookahead=4, new_tokens=40)
    events = decoded.events
    full = np.asarray(events.proposed) > 0
    np.testing.assert_array_equal(
        np.asarray(events.accepted)[full], np.minimum(4, np.asarray(events.emitted)[full])
    )
    assert int(decoded.batch_rounds) == 8


def test_overlap_seen_by_the_decoder_equals_full_forward_passes(draft, target):
    """β at every tested position from ragged caches equals Σ min(p, q) of cacheless forward passes over the same tokens."""
    prompts = np.random.default_rng(3).integers(0, V, (4, 3))
    decoded = speculate(draft, target, prompts, lookahead=3, new_tokens=15, seed=9)
    events = jax.tree.map(np.asarray, decoded.events)
    tokens = decoded.tokens
    p = probabilities(forward(target.config, target.params, tokens)[0], Sampling())
    q = probabilities(forward(draft.config, draft.params, tokens)[0], Sampling())
    exact = np.asarray(overlap(p, q))
    checked = 0
    for row, number in zip(*np.nonzero(events.emitted)):
        # The tested drafts that were kept are in the output, so the contexts of these positions are
        # known.
        tested = min(events.accepted[row, number] + 1, 3, events.emitted[row, number])
        for i in range(tested):
            position = events.start[row, number] + i - 1
            assert events.expected_accepted[row, number, i] == pytest.approx(
                exact[row, position], abs=2e-6
            )
            checked += 1
    assert checked > 40


def test_events_add_up(draft, target):
    prompts = np.random.default_rng(4).integers(0, V, (5, 3))
    new = np.array([1, 7, 12, 12, 3])
    decoded = speculate(draft, target, prompts, lookahead=3, new_tokens=new)
    events = jax.tree.map(np.asarray, decoded.events)
    np.testing.assert_array_equal(events.emitted.sum(axis=1), new)
    np.testing.assert_array_equal(decoded.lengths, 3 + new)
    running = (events.emitted > 0) & (events.stop_reason == 0)
    np.testing.assert_array_equal(events.emitted[running], events.accepted[running] + 1)
    np.testing.assert_array_equal(events.start[:, 0], 3)
    np.testing.assert_array_equal((events.stop_reason == decoding_loop.LENGTH).sum(axis=1), 1)


def test_stop_tokens_end_a_row_and_clip_its_counts(draft, target):
    prompts = np.random.default_rng(5).integers(0, V, (64, 3))
    decoded = speculate(draft, target, prompts, lookahead=4, new_tokens=30, stop_tokens=(2,))
    events = jax.tree.map(np.asarray, decoded.events)
    tokens, lengths = np.asarray(decoded.tokens), np.asarray(decoded.lengths)
    stopped = (events.stop_reason == decoding_loop.STOP_TOKEN).any(axis=1)
    assert stopped.sum() > 5
    for row in range(64):
        emitted = tokens[row, 3 : lengths[row]]
        assert (emitted[:-1] != 2).all()
        assert (emitted[-1] == 2) == stopped[row]
        assert (tokens[row, lengths[row] :] == 0).all()
    assert (events.accepted <= events.emitted).all()
    np.testing.assert_array_equal(events.emitted.sum(axis=1), lengths - 3)


@pytest.mark.slow
def test_one_trace_serves_every_lookahead(draft, target, monkeypatch):
    chex.clear_trace_counter()
    once = chex.assert_max_traces(decoding_loop.speculative_loop.__wrapped__, n=1)
    prompts = np.random.default_rng(6).integers(0, V, (3, 4))
    with monkeypatch.context() as patch:
        patch.setattr(
            decoding_loop,
            "speculative_loop",
            jax.jit(once, static_argnames=decoding_loop.STATIC_ARGUMENTS),
        )
        wide = {
            lookahead: speculate(
                draft, target, prompts, lookahead=lookahead, max_lookahead=5, new_tokens=9
            )
            for lookahead in (1, 2, 5)
        }
        for lookahead, run in wide.items():
            assert run.events.proposed.max() == lookahead
        with pytest.raises(AssertionError, match="traced"):
            speculate(draft, target, prompts, lookahead=2, max_lookahead=4, new_tokens=9)
    # The noise of a draft does not depend on how many there might have been.
    narrow = speculate(draft, target, prompts, lookahead=2, new_tokens=9)
    np.testing.assert_array_equal(narrow.tokens, wide[2].tokens)


def test_autoregressive_sampling_is_the_targets_distribution(target):
    rows = 30_000
    decoded = autoregress(target, np.tile([1, 4], (rows, 1)), new_tokens=2)
    cells = np.ravel_multi_index(np.asarray(decoded.tokens)[:, 2:].T, (V, V))
    expected = exact_joint(target, [1, 4], 2, 1.0) * rows
    chex.assert_shape(expected, (V * V,))
    statistic = ((np.bincount(cells, minlength=V * V) - expected) ** 2 / expected).sum()
    assert scipy.stats.chi2.sf(statistic, V * V - 1) > 1e-6


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lookahead": 0}, "lookahead is 0.*at least 1"),
        ({"lookahead": 2.0}, "lookahead is 2.0; it must be a whole number"),
        ({"max_lookahead": 2.5}, "max_lookahead is 2.5"),
        ({"new_tokens": 1.7}, "new_tokens is of type float64"),
        ({"prompt_lengths": np.array([1.9])}, "prompt_lengths is of type"),
        ({"prompts": np.array([[2**32 + 1]])}, "ids from 4294967297"),
        ({"seed": 2**40}, "seed is 1099511627776"),
        ({"rows": [-1]}, "rows run from -1"),
        ({"lookahead": 5, "max_lookahead": 4}, "must not exceed max_lookahead"),
        ({"prompts": np.array([[9]])}, "ids from 9 to 9"),
        ({"prompts": np.zeros((0, 3), int)}, "must be"),
        ({"sampling": Sampling(-1.0)}, "temperature is -1.0"),
        ({"verification": "blocks"}, "verification is 'blocks'"),
        ({"stop_tokens": (6,)}, "stop tokens are .6."),
        ({"new_tokens": np.array([1, 2])}, "new_tokens has shape"),
        ({"prompt_lengths": np.array([0])}, "prompt lengths run from 0"),
    ],
)
def test_wrong_requests_are_refused(draft, target, changes, message):
    arguments = {"prompts": np.array([[1, 2]]), "lookahead": 2, "new_tokens": 3} | changes
    prompts = arguments.pop("prompts")
    with pytest.raises(SdslError, match=message):
        speculate(draft, target, prompts, **arguments)


# Positions of a learned table, and of the longer one that it is the beginning of.
SHORT, LONG = 12, 24


def learned(positions: int, layers: int, broken: int | None = None) -> Model:
    """A model with the first rows of one table of positions; one row of it NaN if asked for."""
    config = ModelConfig(
        vocab_size=V, width=8, layers=layers, heads=2, kv_heads=1, head_dim=4, hidden=12, positions="learned",
        max_positions=LONG,
    )  # fmt: skip
    params = jax.tree.map(lambda x: 3 * x, init_params(config, jax.random.key(layers)))
    table = params["positions"].get_value()[:positions]
    if broken is not None:
        table = table.at[broken].set(jnp.nan)
    params["positions"].set_value(table)
    return Model(dataclasses.replace(config, max_positions=positions), params)


@pytest.mark.slow
def test_rows_may_fill_a_table_of_positions_whatever_the_lookahead():
    """A verify pass reaches beyond the table there; tokens are those of a model with a longer one, and nothing beyond counts."""
    prompts = np.random.default_rng(7).integers(0, V, (5, 3))
    short, long = (
        speculate(learned(n, 1), learned(n, 2), prompts, lookahead=4, new_tokens=SHORT - 3, seed=3)
        for n in (SHORT, LONG)
    )
    np.testing.assert_array_equal(short.tokens, long.tokens)
    assert (np.asarray(short.lengths) == SHORT).all()
    cut, whole = (jax.tree.map(np.asarray, run.events) for run in (short, long))
    np.testing.assert_array_equal(cut.emitted, whole.emitted)
    inside = np.where(whole.emitted > 0, np.minimum(whole.proposed, SHORT - whole.start + 1), 0)
    assert (inside < whole.proposed).any()
    np.testing.assert_array_equal(cut.proposed, inside)
    np.testing.assert_array_equal(cut.verified, np.minimum(whole.verified, inside))
    np.testing.assert_allclose(
        cut.expected_accepted,
        np.where(np.arange(4) < inside[..., None], whole.expected_accepted, 0),
        atol=1e-5,
    )
    # Rounds that reach beyond it are no evidence about this lookahead.
    rounds = (cut.emitted > 0) & (cut.start + 4 <= SHORT)
    assert (
        summarise(short, 4, 0.9).rounds
        == rounds.sum()
        < (cut.emitted > 0).sum()
        == summarise(long, 4, 0.9).rounds
    )
    with pytest.raises(SdslError, match="come to 13 positions; the target knows only 12"):
        speculate(learned(LONG, 1), learned(SHORT, 2), prompts, lookahead=4, new_tokens=SHORT - 2)
    with pytest.raises(SdslError, match="come to 13 positions; the draft knows only 12"):
        speculate(learned(SHORT, 1), learned(LONG, 2), prompts, lookahead=4, new_tokens=SHORT - 2)


@pytest.mark.parametrize(
    ("drafter", "temperature"),
    [("model", 1.0), ("ngram", 0.0)]
    + [pytest.param("none", temperature, marks=pytest.mark.slow) for temperature in (0.0, 1.0)]
    + [pytest.param(*each, marks=pytest.mark.release) for each in (("model", 0.0), ("ngram", 1.0))],
)
def test_logits_that_are_not_finite_are_refused(drafter, temperature):
    """In one row of a batch, the only one that reaches the broken position."""
    prompts = np.random.default_rng(8).integers(0, V, (5, 3))
    settings = dict(new_tokens=np.array([2, 2, 9, 2, 2]), sampling=Sampling(temperature))
    for broken in (None, 9):
        target, draft = (
            learned(SHORT, 2, broken),
            learned(SHORT, 1) if drafter == "model" else NgramDraft(V),
        )
        refused = contextlib.nullcontext()
        if broken is not None:
            refused = pytest.raises(
                SdslError, match=r"the logits of the target are not finite: .* Nothing is recorded"
            )
        with refused:
            if drafter == "none":
                autoregress(target, prompts, **settings)
            else:
                speculate(draft, target, prompts, lookahead=4, **settings)
    if drafter == "model":
        with pytest.raises(SdslError, match="the logits of the draft are not finite"):
            speculate(learned(SHORT, 1, 9), learned(SHORT, 2), prompts, lookahead=4, **settings)


def test_rows_that_are_done_and_ids_without_a_row_do_not_count_as_broken(draft, target):
    """Beyond their end rows hold anything; ids that a model has no row for get no probability, by a finite logit."""
    prompts = np.random.default_rng(9).integers(0, V, (5, 3))
    speculate(
        learned(SHORT, 1),
        learned(SHORT, 2, 11),
        prompts,
        lookahead=4,
        new_tokens=np.full(5, 4),
        room=9,
    )
    logits = jnp.asarray([[0.0, 1.0], [jnp.nan, 0.0], [jnp.inf, 0.0], [-jnp.inf, 0.0]])
    assert finite_logits(logits).tolist() == [True, False, False, False]
    wide = dataclasses.replace(target.config, logit_size=V + 2)
    halves = jax.tree.map(lambda x: x.astype(jnp.float16), target.params)
    assert finite_logits(forward(wide, halves, prompts[:1])[0]).all()


def test_different_vocabularies_are_refused(target):
    other = ModelConfig(
        vocab_size=V + 1, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, hidden=12
    )
    with pytest.raises(SdslError, match="one vocabulary"):
        speculate(
            Model(other, init_params(other, jax.random.key(0))),
            target,
            np.array([[1]]),
            lookahead=1,
            new_tokens=1,
        )
