"""What a design gives, by hand: prefill in throughput, latency and cost."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdsl_jax.theory import BESIROGLU, PUBLISHED_LOSS_LAWS, LogitGap, ShapeRule
from sdsl_jax.theory.arrays import namespace
from sdsl_jax.theory.hardware import (
    Hardware,
    Load,
    Precision,
    Round,
    family_shape,
    overlapped,
    pass_time,
    resident_bytes,
)
from sdsl_jax.theory.serving import Design, Serving, counted, outcome, size_in_law

H100 = Hardware(40e-6, 8e-6, 1e-6, 3e12, 8e14, 4.0, 100e-6, 450e9, 3e-6, 80e9, 3.0)
FAMILY = ShapeRule(128.0, 128e3, 0.0, 0.125, 2.0)
DESIGN = Design(1e9, 4.0, 2e12, 128.0, 8.0, 70e9)


BASE = Serving(
    H100, BESIROGLU, LogitGap(2.0, 3.5), FAMILY, FAMILY, 15e12, 4096.0, 2048.0, 512.0, devices=4.0
)


def given(share, **changed):
    return outcome(BASE._replace(prefill_share=share, **changed), DESIGN)


def test_without_prefill_only_rounds_count(x64):
    found = given(0.0)
    a_round = float(found.round.seconds)
    tau = float(found.tokens_per_round)
    assert float(found.seconds_per_token) == pytest.approx(a_round / (8 * tau), rel=1e-12)
    assert float(found.speedup) == pytest.approx(
        tau * float(found.step_seconds) / a_round, rel=1e-12
    )
    assert float(found.speedup) == pytest.approx(float(found.decode_speedup), rel=1e-12)
    assert float(found.latency_seconds) == pytest.approx(
        float(found.first_token_seconds) + 512 * a_round / tau, rel=1e-12
    )
    assert float(found.prefill_load) == 0


def test_prefill_on_the_decoding_devices_by_littles_law(x64):
    """In one request's stay all 8 rows get their 512 tokens, and each of the 8 is prefilled once."""
    found, without = given(1.0), given(0.0)
    first = float(found.first_token_seconds)
    decoding = 512 * float(found.round.seconds) / float(found.tokens_per_round)
    assert float(found.latency_seconds) == pytest.approx(decoding + 8 * first, rel=1e-12)
    requests_per_second = 8 / float(found.latency_seconds)
    assert float(found.tokens_per_second) == pytest.approx(512 * requests_per_second, rel=1e-12)
    assert float(found.prefill_load) == pytest.approx(8 * first / (decoding + 8 * first), rel=1e-12)
    ratio = float(found.seconds_per_token / without.seconds_per_token)
    assert ratio == pytest.approx(1 / (1 - float(found.prefill_load)), rel=1e-12)
    assert float(found.cost_per_million_tokens / without.cost_per_million_tokens) == pytest.approx(
        ratio, rel=1e-12
    )
    # The target alone reads its prompts as well, without the draft's share of them.
    assert 1 < float(found.speedup) < float(found.decode_speedup)
    assert float(found.decode_speedup) == float(without.speedup)


def test_where_prefill_is_everything_nothing_is_gained(x64):
    assert float(given(1.0, new_tokens=1e-6).speedup) < 1


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_request_is_its_first_token_and_the_time_of_the_others(x64, share):
    """TTFT + G·TPOT is the latency; without others' prefills a token takes its share of a round."""
    found = given(share)
    assert float(found.first_token_seconds + 512 * found.output_token_seconds) == pytest.approx(
        float(found.latency_seconds), rel=1e-12
    )
    of_rounds = float(found.round.seconds / found.tokens_per_round)
    others = 7 * share * float(found.first_token_seconds) / 512
    assert float(found.output_token_seconds) == pytest.approx(of_rounds + others, rel=1e-12)


def test_overlapped_rounds_take_the_longer_part():
    draft, verify = np.float64(3e-3), np.float64(7e-3)
    one = overlapped(Round(draft, verify, np.float64(1e-3)))
    assert one.seconds == pytest.approx(8e-3, rel=1e-10)
    assert overlapped(Round(draft, np.float64(0), np.float64(0))).seconds == draft
    assert overlapped(Round(np.float64(0), verify, np.float64(0))).seconds == verify
    # Where both are equal the rounded corner is at its worst.
    even = overlapped(Round(verify, verify, np.float64(0))).seconds
    assert 1 < even / verify == pytest.approx(2 ** (1 / 32))


def test_overlapped_drafting_has_devices_of_its_own(x64):
    in_turn, beside = given(0.0), given(0.0, overlapped=1.0)
    assert float(in_turn.round.overlap) == 0
    # The draft takes much less than the target here, and hides behind it.
    assert float(beside.round.seconds) == pytest.approx(
        float(in_turn.round.verify + in_turn.round.overhead), rel=1e-6
    )
    ratio = float(in_turn.round.seconds / beside.round.seconds)
    assert float(beside.speedup / in_turn.speedup) == pytest.approx(ratio, rel=1e-12)
    # Four devices of the target and one of the draft are paid for.
    cost = float(beside.cost_per_million_tokens / in_turn.cost_per_million_tokens)
    assert cost == pytest.approx(5 / 4 / ratio, rel=1e-12)
    assert float(beside.memory_bytes) < float(in_turn.memory_bytes)


def test_joules_are_watts_times_seconds_of_all_devices(x64):
    found = given(1.0, hardware=H100._replace(watts=700.0))
    assert float(found.joules_per_token) == pytest.approx(
        4 * 700 * float(found.seconds_per_token), rel=1e-12
    )
    assert float(given(1.0).joules_per_token) == 0


MIXTURE = FAMILY._replace(experts=16.0, active_experts=3.0)


def test_the_experts_that_a_pass_reads_by_simulation():
    """E·(1 − (1 − k/E)^t) beside the mean of 20,000 draws; off by 5 standard errors in 1 of 1.7M."""
    rng = np.random.default_rng(0)
    shape = family_shape(np.float64(30e9), MIXTURE)
    for tokens in (1, 2, 7):
        chosen = rng.random((20_000, tokens, 16)).argsort(axis=-1)[..., :3]
        hit = np.zeros((20_000, 16), bool)
        np.put_along_axis(hit, chosen.reshape(len(hit), -1), True, axis=1)
        touched = hit.sum(axis=1)
        expected = float(shape.read_experts(np.float64(tokens)))
        read = shape.read_params(np.float64(tokens)) - (shape.params - shape.expert_params)
        assert expected == pytest.approx(16 * float(read / shape.expert_params), rel=1e-12)
        error = touched.std() / np.sqrt(len(touched))
        assert touched.mean() == pytest.approx(expected, abs=5 * error + 1e-9)


def test_one_expert_is_a_dense_model_to_the_last_bit():
    for law in PUBLISHED_LOSS_LAWS.values():
        dense = family_shape(np.float64(70e9), FAMILY)
        assert size_in_law(dense, law) == counted(dense, law)
    assert dense.read_params(np.float64(7.0)) == dense.params == dense.active_params
    everyone = family_shape(np.float64(70e9), FAMILY._replace(experts=8.0, active_experts=8.0))
    assert pass_time(H100, everyone, Precision(), Load(5.0, 8.0, 1e3)) == pass_time(
        H100, dense, Precision(), Load(5.0, 8.0, 1e3)
    )


def test_a_mixture_counts_between_its_active_parameters_and_all_of_them():
    shape = family_shape(np.float64(30e9), MIXTURE)
    active = shape.total_params - (shape.params - shape.active_params)
    assert size_in_law(shape, BESIROGLU) == pytest.approx(
        np.sqrt(float(active) * float(shape.total_params)), rel=1e-12
    )
    # Memory holds every expert.
    assert resident_bytes(shape, Precision(), 0.0, 0.0) == 2 * shape.total_params


def test_gradients_of_a_mixture_are_those_of_finite_differences(x64):
    names = "seconds_per_token", "output_token_seconds", "joules_per_token", "memory_bytes"
    powered = H100._replace(watts=700.0)
    at = np.asarray([0.3e9, 3.5, 6.0, 30e9, 16.0, 3.0])

    def logarithms(z, beside):
        draft, lookahead, batch, target, experts, active = z
        family = FAMILY._replace(experts=experts, active_experts=active)
        serving = BASE._replace(
            hardware=powered, target_family=family, overlapped=beside, prefill_share=0.5
        )
        found = outcome(serving, Design(draft, lookahead, 2e12, 128.0, batch, target))
        return namespace(z).log(namespace(z).stack([getattr(found, name) for name in names]))

    slopes_of = jax.jit(jax.jacfwd(logarithms))
    for beside in np.float64(0), np.float64(1):
        slopes = np.asarray(slopes_of(jnp.asarray(at), beside))
        assert np.isfinite(slopes).all()
        for i, step in enumerate(1e-5 * at):
            up, down = at.copy(), at.copy()
            up[i] += step
            down[i] -= step
            measured = (logarithms(up, beside) - logarithms(down, beside)) / (2 * step)
            # Central differences err by a third derivative times 1e-10, and by rounding over 1e-5.
            np.testing.assert_allclose(slopes[:, i] * at[i], measured * at[i], atol=2e-8)
