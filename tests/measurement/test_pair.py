import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from sdsl_jax.data.prompts import Prompts
from sdsl_jax.data.tokenizer import ByteTokenizer
from sdsl_jax.decoding import (
    HybridDraft,
    Model,
    NgramDraft,
    Sampling,
    one_vocabulary,
    overlap,
    probabilities,
)
from sdsl_jax.errors import SdslError
from sdsl_jax.measurement import latency as generation
from sdsl_jax.measurement import pair as module
from sdsl_jax.measurement.overlap import pairwise_overlap
from sdsl_jax.measurement.pair import PairSettings, measure_models
from sdsl_jax.models import ModelConfig, init_params
from sdsl_jax.models import forward as eager_forward

forward = jax.jit(eager_forward, static_argnums=0)

V = 8


def make(seed: int) -> Model:
    config = ModelConfig(
        vocab_size=V, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, hidden=12
    )
    return Model(config, jax.tree.map(lambda x: 1.4 * x, init_params(config, jax.random.key(seed))))


def ragged(count: int) -> Prompts:
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 7, count).astype(np.int32)
    tokens = np.where(np.arange(6) < lengths[:, None], rng.integers(0, V, (count, 6)), 0).astype(
        np.int32
    )
    return Prompts(tokens, lengths, "random", count, 0)


@pytest.fixture(scope="module")
def pair():
    return make(1), make(2)


SETTINGS = dict(lookaheads=(3, 1), new_tokens=24, batch=200)


@pytest.fixture(scope="module")
def measured(pair):
    return measure_models(*pair, ragged(400), PairSettings(**SETTINGS))


def error(interval) -> float:
    return (interval.high - interval.low) / 2 / 1.65


def test_the_decoder_does_what_the_probabilities_say(measured):
    """τ by decoding against τ by the recursion on other samples: five standard errors; and the self-check."""
    assert [r.lookahead for r in measured.lookaheads] == [3, 1]
    for result in measured.lookaheads:
        tau, expected = result.statistics.tokens_per_round, result.expected
        assert abs(tau.estimate - expected.estimate) < 5 * np.hypot(error(tau), error(expected))
        assert abs(result.statistics.self_check) < 5
        assert len(result.statistics.survival) == result.lookahead


def test_exact_acceptance_is_the_overlap_on_the_samples(pair, measured):
    """Rows without padding, batches or masks; of the longest prompt, so that they share one shape."""
    draft, target = pair
    prompts, settings = ragged(400), PairSettings(**SETTINGS)
    samples = module.sample_target(target, prompts, settings, lambda: None)
    exact = module.exact_acceptance(draft, target, samples, settings)
    rows = np.flatnonzero(prompts.lengths == 6)
    ids = samples.tokens[rows, : 6 + 24]
    p, q = (
        probabilities(forward(m.config, m.params, ids)[0], Sampling())[:, 5:-1]
        for m in (target, draft)
    )
    of_rows = pairwise_overlap({"d": draft}, {"t": target}, ids[:, :-1], first=5).pairs["d", "t"]
    np.testing.assert_allclose(of_rows.acceptance[0], overlap(p, q).sum(axis=1), atol=1e-4)
    p_y, q_y = (
        np.take_along_axis(np.asarray(x), ids[:, 6:, None], axis=-1)[..., 0] for x in (p, q)
    )
    np.testing.assert_allclose(exact.acceptance[rows, :24], np.minimum(1, q_y / p_y), atol=1e-4)
    assert measured.positions == exact.counted.sum() == 400 * 24
    sums = 0.0
    for length in range(1, 7):
        ids = samples.tokens[prompts.lengths == length, : length + 24]
        sums += (
            pairwise_overlap({"d": draft}, {"t": target}, ids[:, :-1], first=length - 1)
            .pairs["d", "t"]
            .acceptance.sum()
        )
    assert exact.alpha == measured.alpha
    assert exact.alpha.estimate == pytest.approx(sums / (400 * 24), rel=1e-4)


@pytest.mark.slow
def test_batches_change_nothing(pair, measured):
    other = measure_models(
        *pair, ragged(400), PairSettings(**SETTINGS | {"batch": 150})
    )  # the last one is not full
    for mine, theirs in zip(measured.lookaheads, other.lookaheads):
        np.testing.assert_array_equal(mine.decoded.tokens, theirs.decoded.tokens)
        np.testing.assert_array_equal(mine.decoded.events.accepted, theirs.decoded.events.accepted)
        assert (np.asarray(mine.decoded.lengths) == ragged(400).lengths + 24).all()
        assert mine.expected == pytest.approx(theirs.expected, abs=1e-5)
    assert measured.alpha == pytest.approx(other.alpha, abs=1e-6)


@pytest.mark.slow
def test_a_table_of_positions_may_be_filled_to_its_end():
    """τ by decoding is the expected one, of rounds that the table leaves room for: five standard errors."""
    prompts, settings = ragged(400), PairSettings(**SETTINGS)

    def learned(seed):
        config = dataclasses.replace(make(seed).config, positions="learned", max_positions=6 + 24)
        return Model(
            config, jax.tree.map(lambda x: 1.4 * x, init_params(config, jax.random.key(seed)))
        )

    draft, target = learned(1), learned(2)
    for result in measure_models(draft, target, prompts, settings).lookaheads:
        tau, expected = result.statistics.tokens_per_round, result.expected
        assert abs(tau.estimate - expected.estimate) < 5 * np.hypot(error(tau), error(expected))
        assert abs(result.statistics.self_check) < 5
    longer = PairSettings(**SETTINGS | {"new_tokens": 25})
    with pytest.raises(
        SdslError,
        match="prompts of 6 and 25 new tokens come to 31 positions; the target knows only 30",
    ):
        measure_models(draft, target, prompts, longer)


@pytest.mark.slow
def test_a_stop_token_ends_rows_and_what_is_counted(pair):
    found = measure_models(*pair, ragged(400), PairSettings(**SETTINGS, stop_tokens=(3,)))
    assert found.positions < 400 * 24
    for result in found.lookaheads:
        decoded = result.decoded
        for ids, begin, end in zip(decoded.tokens, decoded.prompt_lengths, decoded.lengths):
            assert 3 not in ids[begin : end - 1]
            assert end == begin + 24 or ids[end - 1] == 3
        tau, expected = result.statistics.tokens_per_round, result.expected
        assert abs(tau.estimate - expected.estimate) < 5 * np.hypot(error(tau), error(expected))


def test_greedy_decoding_leaves_nothing_to_chance(pair):
    for result in measure_models(
        *pair, ragged(400), PairSettings(**SETTINGS, sampling=Sampling(0.0))
    ).lookaheads:
        assert result.statistics.tokens_per_round.estimate == pytest.approx(
            result.expected.estimate, abs=1e-5
        )
        assert np.isnan(result.statistics.self_check)


@pytest.mark.slow
def test_block_verification_never_keeps_fewer(pair, measured):
    (block,) = measure_models(
        *pair, ragged(400), PairSettings(**SETTINGS | {"lookaheads": (3,)}, verification="block")
    ).lookaheads
    tau, expected = block.statistics.tokens_per_round, block.expected
    assert expected == pytest.approx(
        measured.lookaheads[0].expected, abs=1e-5
    )  # of token verification in both
    assert tau.estimate > expected.estimate - 3 * error(tau)
    assert abs(block.statistics.self_check) < 5


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lookaheads": ()}, "lookaheads is empty"),
        ({"lookaheads": (0,)}, "holds 0"),
        ({"lookaheads": (2, 2)}, "repeats a value"),
        ({"lookaheads": (4,), "new_tokens": 4}, "must exceed the largest lookahead"),
        ({"sampling": Sampling(-1.0)}, "temperature is -1"),
        ({"sampling": Sampling(top_p=0.0)}, "top_p is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"batch": 0}, "batch is 0"),
        ({"confidence": 1.0}, "confidence is 1"),
    ],
)
def test_settings_are_checked(changes, message):
    with pytest.raises(SdslError, match=message):
        PairSettings(**changes)


def test_a_pair_is_checked(pair):
    with pytest.raises(SdslError, match="stop token is 8; it must lie in"):
        measure_models(*pair, ragged(4), PairSettings(stop_tokens=(V,)))


@pytest.fixture
def wide(pair):
    """The target with three ids more than the draft has."""
    _, target = pair
    model = Model(
        dataclasses.replace(target.config, vocab_size=V + 3), nnx.merge(*nnx.split(target.params))
    )
    rows = np.asarray(jax.tree.leaves(target.params["embedding"])[0])
    model.params["embedding"] = nnx.Param(
        jnp.asarray(np.pad(rows, ((0, 3), (0, 0)), constant_values=0.3))
    )
    return model


def test_ids_that_a_model_has_no_row_for_get_no_probability_from_it(pair, wide):
    narrow, _ = pair
    padded, same = one_vocabulary(narrow, wide)
    assert (padded.config.ids, same.config) == (V + 3, wide.config)
    logits = [forward(m.config, m.params, np.arange(V)[None])[0][0] for m in (narrow, padded)]
    plain, filled = (np.asarray(jax.nn.softmax(x)) for x in logits)
    np.testing.assert_allclose(filled[:, :V], plain, rtol=1e-5)
    assert (filled[:, V:] == 0).all()


@pytest.mark.release
@pytest.mark.parametrize("larger", ["draft", "target"])
def test_tables_of_different_size_are_one_vocabulary(pair, wide, larger):
    """Decoding stays what the probabilities say, whichever of the two knows more ids: five standard errors."""
    draft, target = (wide, pair[0]) if larger == "draft" else (pair[0], wide)
    found = measure_models(
        draft, target, ragged(200), PairSettings(**SETTINGS | {"lookaheads": (2,)})
    )
    result = found.lookaheads[0]
    tau, expected = result.statistics.tokens_per_round, result.expected
    assert abs(tau.estimate - expected.estimate) < 5 * np.hypot(error(tau), error(expected))
    assert all(np.isfinite(nats).all() for nats in found.text.nats.values())
    if larger == "draft":
        assert result.decoded.tokens.max() < V


def test_losses_on_the_prompts_are_those_of_a_plain_pass(pair, measured):
    draft, target = pair
    prompts = ragged(400)
    for role, model in (("draft", draft), ("target", target)):
        logits = forward(model.config, model.params, prompts.tokens)[0]
        log_probs = np.asarray(jax.nn.log_softmax(logits))
        chosen = np.take_along_axis(log_probs[:, :-1], prompts.tokens[:, 1:, None], -1)[..., 0]
        counts = np.arange(5) < prompts.lengths[:, None] - 1
        nats = measured.text.nats[role].sum()
        assert nats / counts.sum() == pytest.approx(-chosen[counts].mean(), rel=1e-5)
    assert measured.text.positions.sum() == counts.sum()


def test_a_truncated_draft_has_the_loss_of_the_tokens_that_it_can_give(pair, measured):
    """As in training. It has no bits per byte: the other tokens would take infinitely many."""
    draft, target = pair
    ids = tuple(range(0, V, 2))
    some = Model(dataclasses.replace(draft.config, readout_ids=ids), draft.params)
    prompts, settings = ragged(400), PairSettings(**SETTINGS)
    found = module._score_text(some, target, prompts, settings)
    np.testing.assert_array_equal(found.nats["target"], measured.text.nats["target"])
    np.testing.assert_array_equal(found.given["target"], found.positions)
    logits = forward(draft.config, draft.params, prompts.tokens)[0][:, :-1, ::2]
    following = prompts.tokens[:, 1:]
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    chosen = np.take_along_axis(log_probs, (following // 2)[..., None], -1)[..., 0]
    counts = (np.arange(5) < prompts.lengths[:, None] - 1) & (following % 2 == 0)
    loss, bits = module.loss_on_prompts(
        found.nats["draft"], prompts, ByteTokenizer(), 0.9, found.given["draft"]
    )
    assert loss.estimate == pytest.approx(-chosen[counts].mean(), rel=1e-5)
    assert np.isfinite(loss).all()
    assert np.isnan(bits).all()


def test_what_is_no_number_is_refused_and_never_an_acceptance(pair):
    """An overflow in float16, say: min(1, NaN) must not become 1."""
    draft, target = pair
    broken = Model(
        target.config, jax.tree.map(lambda x: x * jnp.nan if x.ndim == 1 else x, target.params)
    )
    for q, p, role in ((draft, broken, "target"), (broken, target, "draft")):
        with pytest.raises(SdslError, match=f"the logits of the {role} are not finite at"):
            measure_models(q, p, ragged(4), PairSettings(**SETTINGS))


@pytest.mark.slow
def test_special_tokens_at_the_beginning_are_not_part_of_the_loss(pair):
    draft, target = pair
    plain = ragged(50)
    led = plain._replace(
        tokens=np.pad(plain.tokens, ((0, 0), (1, 0))), lengths=plain.lengths + 1, lead=1
    )
    settings = PairSettings(**SETTINGS | {"lookaheads": (1,)})
    found = measure_models(draft, target, led, settings).text
    logits = forward(target.config, target.params, led.tokens)[0]
    log_probs = np.asarray(jax.nn.log_softmax(logits))
    chosen = np.take_along_axis(log_probs[:, 1:-1], led.tokens[:, 2:, None], -1)[..., 0]
    counts = np.arange(5) < plain.lengths[:, None] - 1
    loss = found.nats["target"].sum() / found.positions.sum()
    assert loss == pytest.approx(-chosen[counts].mean(), rel=1e-5)
    assert found.positions.sum() == counts.sum()


def test_an_ngram_draft_is_measured_by_the_decoder_alone(pair):
    found = measure_models(NgramDraft(V), pair[1], ragged(50), PairSettings(**SETTINGS))
    assert (found.alpha, found.text) == (None, None)
    assert all(result.expected is None for result in found.lookaheads)
    assert found.lookaheads[0].statistics.tokens_per_round.estimate > 1


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [1.0, 0.0])
def test_ngrams_first_do_what_the_probabilities_say(pair, temperature):
    """τ by decoding against τ by the recursion over a mixture, on other samples: five standard errors.
    Greedy texts are the same, and so is every round."""
    hybrid = HybridDraft(NgramDraft(V, 3, 2), pair[0])
    settings = PairSettings(**SETTINGS, sampling=Sampling(temperature))
    found = measure_models(hybrid, pair[1], ragged(400), settings)
    assert (found.alpha, found.text, found.exact) == (None, None, None)
    for result in found.lookaheads:
        tau, expected = result.statistics.tokens_per_round, result.expected
        if temperature:
            assert abs(tau.estimate - expected.estimate) < 5 * np.hypot(error(tau), error(expected))
            assert abs(result.statistics.self_check) < 5
        assert result.divergences in (None, [])
        share = result.statistics.fallback_share
        events = result.decoded.events
        ran = np.asarray(events.emitted) > 0
        assert share.estimate == pytest.approx(events.drafted_by[ran].mean())
        assert 0.05 < share.estimate < 0.95


@pytest.mark.parametrize("rule", ["token", "block"])
def test_requests_are_timed_as_the_pair_is_measured(pair, monkeypatch, rule):
    """Every lookahead, with the pair's verification, temperature and seed, and each request to its full length."""
    seen = []

    def speculate(draft, target, tokens, **given):
        seen.append(given)
        return generation.autoregress(target, tokens, new_tokens=given["new_tokens"])

    monkeypatch.setattr(generation, "speculate", speculate)
    settings = PairSettings(
        lookaheads=(1, 3),
        new_tokens=6,
        sampling=Sampling(0.7),
        verification=rule,
        stop_tokens=(2,),
        seed=5,
    )
    times = generation.time_generation(*pair, ragged(8), settings, count=2, repetitions=2)
    assert [t.lookahead for t in times] == [0, 1, 3]
    assert {(g["verification"], g["sampling"].temperature, g["seed"]) for g in seen} == {
        (rule, 0.7, 5)
    }
    assert {(g["lookahead"], g["new_tokens"]) for g in seen} == {(1, 1), (1, 6), (3, 1), (3, 6)}
    assert not any("stop_tokens" in g for g in seen)
