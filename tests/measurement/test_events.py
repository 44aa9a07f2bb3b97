import math
from statistics import NormalDist

import numpy as np
import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdsl_jax.errors import SdslError
from sdsl_jax.measurement.events import CONVENTIONS, CONVERTIBLE, acceptance_report, convert
from sdsl_jax.theory import acceptance_from_tokens_per_round


def table(*rounds):
    """Rounds as (row, proposed, accepted, emitted)."""
    return dict(zip(("row", "proposed", "accepted", "emitted"), np.array(rounds).T))


# γ = 3: full acceptance, two rejections, a cut at the second draft; in the other row a rejection
# and full acceptance.
FIXED = table((0, 3, 3, 4), (0, 3, 0, 1), (0, 3, 1, 2), (0, 3, 2, 2), (1, 3, 2, 3), (1, 3, 3, 4))


def values(report):
    return {name: interval.estimate for name, interval in report.estimates.items()}


def test_every_convention_counted_by_hand():
    """11 drafts of 18 accepted in 6 rounds; tests 3 + 1 + 2 + 2 + 3 + 3, for what is behind the cut was never tested."""
    report = acceptance_report(FIXED)
    found = values(report)
    expected = {
        "per_test_acceptance": 11 / 14,
        "accepted_per_round": 11 / 6,
        "vllm_acceptance_length": 17 / 6,
        "vllm_acceptance_rate": 11 / 18,
        "vllm_position_1": 5 / 6,
        "vllm_position_2": 4 / 6,
        "vllm_position_3": 2 / 6,
        "eagle_tau": 17 / 6,
        "eagle_alpha_0": 5 / 6,
        "eagle_alpha_1": 4 / 5,
        "eagle_alpha_2": 2 / 3,  # the cut round reached position 2 and not position 3
        "sglang_old_accept_rate": 17 / 24,
        "deepspec_accept_rate": 17 / 24,
        "specbench_tokens_per_round": 16
        / 6,  # a token less than τ: the cut round emitted no token after its drafts
        "paper_tar": 11 / 18,
        "rounds_per_row": 3,
        "batch_rounds": 4,
        "tokens_per_batch_round": 16 / 8,
    }
    assert {k: pytest.approx(v) for k, v in expected.items()} == {
        k: v for k, v in found.items() if k != "paper_alpha"
    }
    assert found["paper_alpha"] == pytest.approx(float(acceptance_from_tokens_per_round(17 / 6, 3)))
    assert (report.lookahead, report.rows, report.rounds, report.excluded, report.cut) == (
        3,
        2,
        6,
        0,
        1,
    )


def test_an_adaptive_lookahead_counted_by_hand():
    """γ = 2, 0, 4, 1: a round without drafts is none to vLLM and SGLang, and emits its token all the same."""
    report = acceptance_report(table((0, 2, 2, 3), (0, 0, 0, 1), (1, 4, 1, 2), (1, 1, 1, 2)))
    found = values(report)
    assert report.lookahead is None
    assert found["accepted_per_round"] == pytest.approx(4 / 3)
    assert found["vllm_acceptance_length"] == pytest.approx(7 / 3)
    assert found["vllm_acceptance_rate"] == found["paper_tar"] == pytest.approx(4 / 7)
    assert found["vllm_position_2"] == pytest.approx(1 / 3)
    assert found["eagle_alpha_1"] == pytest.approx(1 / 2)
    assert found["eagle_tau"] == found["specbench_tokens_per_round"] == pytest.approx(8 / 4)
    assert found["sglang_old_accept_rate"] == pytest.approx(7 / 10)
    assert found["deepspec_accept_rate"] == pytest.approx(8 / 11)
    assert math.isnan(found["eagle_alpha_3"])
    assert found["per_test_acceptance"] == pytest.approx(4 / 5)
    alpha = found["paper_alpha"]
    assert sum(alpha**k for g in (2, 4, 1) for k in range(1, g + 1)) == pytest.approx(4, rel=1e-6)


def simulate(alpha, lookahead_of, rows, room, seed, stop_share=0.0):
    """Rounds of i.i.d. acceptance: rows of `room` tokens, each of which is a stop token with some probability."""
    random = np.random.default_rng(seed)
    columns = {name: [] for name in ("row", "round", "start", "proposed", "accepted", "emitted")}
    for row in range(rows):
        position, number = 0, 0
        while position < room:
            proposed = lookahead_of(random)
            kept = int(np.argmin(np.append(random.random(proposed) < alpha, False)))
            emitted = min(kept + 1, room - position)
            stops = np.flatnonzero(random.random(emitted) < stop_share)
            emitted = emitted if len(stops) == 0 else int(stops[0]) + 1
            for name, value in zip(
                columns, (row, number, position, proposed, min(kept, emitted), emitted)
            ):
                columns[name].append(value)
            position, number = room if len(stops) else position + emitted, number + 1
    return pandas.DataFrame(columns)


def standard_errors(interval, truth, confidence=0.9):
    """Distance of an estimate from the truth in its own standard errors; with hundreds of rows, standard normal."""
    error = (interval.high - interval.low) / 2 / NormalDist().inv_cdf(0.5 + confidence / 2)
    return (interval.estimate - truth) / error


def test_cuts_bias_ratios_over_rounds_and_not_tests():
    """Five standard errors: a false alarm of 6e-7 for each of six. Rows of 9 tokens at γ = 4: the end is never far."""
    frame = simulate(0.8, lambda random: 4, rows=3_000, room=9, seed=0, stop_share=0.02)
    naive = acceptance_report(frame).estimates
    for name in ("per_test_acceptance", "eagle_alpha_0", "eagle_alpha_3"):
        assert abs(standard_errors(naive[name], 0.8)) < 5
    # Over all rounds the geometric formula looks wrong by many standard errors, for rows end within
    # rounds.
    assert standard_errors(naive["paper_alpha"], 0.8) < -10
    length = simulate(0.8, lambda random: 4, rows=3_000, room=9, seed=1)
    whole = acceptance_report(length, max_lengths=9, whole_rounds_only=True)
    tau = sum(0.8**k for k in range(5))
    assert whole.cut == 0
    assert whole.excluded > 0
    assert whole.excluded + whole.rounds == len(length)
    for name, truth in (("eagle_tau", tau), ("paper_alpha", 0.8), ("vllm_position_3", 0.8**3)):
        assert abs(standard_errors(whole.estimates[name], truth)) < 5
    per_row = acceptance_report(length, max_lengths=np.full(3_000, 9), whole_rounds_only=True)
    assert per_row == whole


def test_alpha_from_lookaheads_that_differ_from_round_to_round():
    """Lookaheads drawn from 0 to 6 before the drafts: five standard errors."""
    frame = simulate(0.7, lambda random: int(random.integers(0, 7)), rows=400, room=200, seed=2)
    found = acceptance_report(frame, max_lengths=200, whole_rounds_only=True).estimates
    for name in ("paper_alpha", "per_test_acceptance"):
        assert abs(standard_errors(found[name], 0.7)) < 5
        assert found[name].high - found[name].low < 0.02
    # The mean lookahead does not give it: τ is concave in γ.
    rate = found["accepted_per_round"].estimate
    assert float(acceptance_from_tokens_per_round(1 + rate, 3.5)) < 0.7


def test_intervals_take_rows_as_clusters():
    """Rows that each repeat one outcome: 100 rounds a row tell no more than one, so the interval is that of the rows."""
    outcomes = np.random.default_rng(3).integers(0, 4, 50)
    once = acceptance_report(table(*((r, 3, a, a + 1) for r, a in enumerate(outcomes)))).estimates
    often = acceptance_report(
        table(*((r, 3, a, a + 1) for r, a in enumerate(outcomes) for _ in range(100)))
    ).estimates
    for name in ("vllm_acceptance_rate", "per_test_acceptance", "paper_alpha", "eagle_alpha_1"):
        assert often[name] == pytest.approx(once[name])


def test_rows_that_differ_in_their_lookahead_alone_leave_no_doubt_about_alpha():
    """γ = 1 in one row and 2 in the other, both with exactly what α = ½ gives: 1/2 and 1/2 + 1/4 accepted a round."""
    one = [(0, 1, a, a + 1) for a in (1, 0)]
    two = [(1, 2, a, a + 1) for a in (2, 1, 0, 0)]
    found = acceptance_report(table(*one, *two)).estimates
    assert found["paper_alpha"] == pytest.approx((0.5, 0.5, 0.5), abs=1e-6)
    assert found["paper_tar"].high - found["paper_tar"].low > 0.1


def test_the_order_and_names_of_rows_do_not_matter():
    frame = simulate(0.6, lambda random: 3, rows=20, room=30, seed=4)
    shuffled = frame.sample(frac=1, random_state=0).assign(row=lambda f: 7 * f["row"] - 30)
    a, b = acceptance_report(frame), acceptance_report(shuffled)
    assert {k: pytest.approx(v, nan_ok=True) for k, v in a.estimates.items()} == b.estimates


def test_every_estimate_is_of_a_convention():
    estimates = acceptance_report(FIXED).estimates
    named = {name if name in CONVENTIONS else name.rpartition("_")[0] for name in estimates}
    assert named == {*CONVENTIONS}
    assert estimates["sglang_old_accept_rate"].estimate == pytest.approx(17 / 24)
    assert (
        estimates["eagle_tau"].low < estimates["eagle_tau"].estimate < estimates["eagle_tau"].high
    )


@pytest.mark.parametrize("accepted", [0, 3])
def test_nothing_and_everything_accepted(accepted):
    found = values(acceptance_report(table(*((r, 3, accepted, accepted + 1) for r in range(4)))))
    assert (
        found["paper_alpha"]
        == found["per_test_acceptance"]
        == found["vllm_acceptance_rate"]
        == accepted / 3
    )


def test_nothing_proposed():
    found = values(acceptance_report(table((0, 0, 0, 1), (1, 0, 0, 1))))
    assert found["eagle_tau"] == 1
    assert all(
        math.isnan(found[name])
        for name in ("paper_alpha", "vllm_acceptance_length", "per_test_acceptance")
    )


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ({"row": [0]}, "lack the column proposed, accepted, emitted"),
        (
            table((0, 3, 4, 5)),
            r"round 0 of the events has 3 proposed, 4 accepted and 5 emitted; it must have accepted",
        ),
        (
            table((0, 3, 1, 2), (0, 3, 1, 3)),
            "round 1 of the events has 3 proposed, 1 accepted and 3 emitted",
        ),
        (table((0, -1, 0, 1)), "proposed of the events holds negative numbers"),
        (table((0, 3, 0.5, 1)), "accepted of the events must hold whole numbers"),
        (table((0, 3, 0, 0)), "no round that emitted a token"),
        (FIXED | {"row": np.zeros(2, int)}, "must be one-dimensional and of one length"),
        (
            FIXED | {"row": np.array(list("aabbcc"))},
            "the column row of the events must hold whole numbers",
        ),
        (FIXED | {"round": np.array([0, 1, 2, 2, 0, 1])}, "row 0 has round 2 2 times"),
    ],
)
def test_tables_are_checked(events, message):
    with pytest.raises(SdslError, match=message):
        acceptance_report(events)


def test_options_are_checked():
    starts = FIXED | {"start": np.zeros(6, int)}
    with pytest.raises(SdslError, match="needs max_lengths"):
        acceptance_report(starts, whole_rounds_only=True)
    with pytest.raises(SdslError, match="lack the column start"):
        acceptance_report(FIXED, max_lengths=9, whole_rounds_only=True)
    with pytest.raises(SdslError, match="rows run from 0 to 1"):
        acceptance_report(starts, max_lengths=np.array([9]), whole_rounds_only=True)
    with pytest.raises(SdslError, match="no round began with room"):
        acceptance_report(starts, max_lengths=3, whole_rounds_only=True)
    with pytest.raises(SdslError, match="confidence is 1"):
        acceptance_report(FIXED, confidence=1.0)


def test_one_run_under_two_names():
    """An acceptance length of 2.605 at γ = 3 is a rate of 0.535 in vLLM and of 0.651 in older SGLang."""
    assert round(convert(2.605, "vllm_acceptance_length", "vllm_acceptance_rate", 3), 3) == 0.535
    assert round(convert(2.605, "vllm_acceptance_length", "sglang_old_accept_rate", 3), 3) == 0.651
    assert round(convert(0.65125, "sglang_old_accept_rate", "vllm_acceptance_rate", 3), 3) == 0.535


@given(
    st.floats(0, 1), st.integers(1, 20), st.sampled_from(CONVERTIBLE), st.sampled_from(CONVERTIBLE)
)
def test_conversions_invert_one_another(share, lookahead, source, target):
    """α is found in float32 and varies as much as the mean or less, so the mean comes back to 1e-4 of γ."""
    options = dict(lookahead=lookahead, assume_geometric=True)
    value = convert(share * lookahead, "accepted_per_round", source, **options)
    there = convert(value, source, target, **options)
    back = convert(there, target, "accepted_per_round", **options)
    assert back == pytest.approx(share * lookahead, abs=1e-4 * lookahead)


def test_conversions_agree_with_what_events_give():
    """Of whole rounds at one γ; each convention from each other one."""
    frame = simulate(0.7, lambda random: 4, rows=30, room=60, seed=5)
    found = acceptance_report(frame, max_lengths=60, whole_rounds_only=True).estimates
    names = [name for name in CONVERTIBLE if name != "per_test_acceptance"]
    for source in names:
        for target in names:
            converted = convert(found[source].estimate, source, target, 4)
            assert converted == pytest.approx(found[target].estimate, rel=1e-5), (source, target)
    # Acceptance here is i.i.d., so per-test acceptance nearly follows: the two estimators share
    # their data.
    alpha = convert(
        found["eagle_tau"].estimate, "eagle_tau", "per_test_acceptance", 4, assume_geometric=True
    )
    assert alpha == pytest.approx(found["per_test_acceptance"].estimate, abs=0.02)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((2.6, "eagle_tau", "per_test_acceptance", 3), "assume_geometric"),
        ((0.6, "per_test_acceptance", "eagle_tau", 3), "assume_geometric"),
        ((2.6, "eagle_tau", "vllm_position", 3), "'vllm_position' does not determine"),
        ((2.6, "eagle_alpha_0", "eagle_tau", 3), "'eagle_alpha_0' does not determine"),
        (
            (4.5, "vllm_acceptance_length", "paper_tar", 3),
            r"is 4.5; at a lookahead of 3 it must lie in \[1, 4\]",
        ),
        ((0.1, "sglang_old_accept_rate", "paper_tar", 3), r"it must lie in \[0.25, 1\]"),
        ((math.nan, "paper_tar", "eagle_tau", 3), "is nan"),
        ((2.6, "eagle_tau", "paper_tar", 0), "lookahead is 0"),
        ((2.6, "eagle_tau", "paper_tar", 2.5), "lookahead is 2.5"),
    ],
)
def test_conversions_that_cannot_be_made(arguments, message):
    with pytest.raises(SdslError, match=message):
        convert(*arguments)
