"""What a design gives, by hand: prefill in throughput, latency and cost."""

import pytest

from sdsl_jax.theory import BESIROGLU, LogitGap, ShapeRule
from sdsl_jax.theory.hardware import Hardware
from sdsl_jax.theory.serving import Design, Serving, outcome

H100 = Hardware(40e-6, 8e-6, 1e-6, 3e12, 8e14, 4.0, 100e-6, 450e9, 3e-6, 80e9, 3.0)
FAMILY = ShapeRule(128.0, 128e3, 0.0, 0.125, 2.0)
DESIGN = Design(1e9, 4.0, 2e12, 128.0, 8.0, 70e9)


def given(share, **changed):
    serving = Serving(
        H100,
        BESIROGLU,
        LogitGap(2.0, 3.5),
        FAMILY,
        FAMILY,
        15e12,
        4096.0,
        2048.0,
        512.0,
        devices=4.0,
        prefill_share=share,
    )
    return outcome(serving._replace(**changed), DESIGN)


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
