import functools
import json
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from sdsl_jax.cli import predict as command
from sdsl_jax.codesign.laws import far_outside, quality
from sdsl_jax.codesign.predict import (
    Prediction,
    Target,
    codesign_command,
    predict,
    targets_from_csv,
)
from sdsl_jax.codesign.predict_lookahead import (
    LookaheadAnswer,
    best_lookahead,
    best_measured_lookahead,
    break_even_verify_cost,
    counted_acceptance,
)
from sdsl_jax.counts import parse_count, parse_share
from sdsl_jax.errors import SdslError
from sdsl_jax.fitting.law_files import load_law
from sdsl_jax.ranges import share_hint
from sdsl_jax.records.documents import schema_of
from sdsl_jax.theory import BESIROGLU, PAPER_PLANE, LogitGap, coefficients, speedup

loss_law = functools.partial(load_law, kind="loss")
acceptance_law = functools.partial(load_law, kind="acceptance")
PUBLISHED = loss_law("besiroglu"), acceptance_law("paper")
OPT_30B = Target(30e9, 180e9, 180e9)
KEYS = {
    "target_params", "draft_tokens", "target_tokens", "loss_law", "acceptance_law", "draft_params", "lookahead",
    "lookahead_integer", "acceptance", "speedup", "speculate", "indifference_1pct", "indifference_5pct", "elasticity",
    "interval_90", "interval_basis", "warnings",
}  # fmt: skip


@pytest.mark.slow
def test_the_papers_targets():
    first, second = predict([OPT_30B, Target(110e9, 180e9, 3e12, "Qwen1.5-110B")], *PUBLISHED)
    assert set(first.to_json()) >= KEYS
    assert first.draft_params == pytest.approx(189e6, rel=0.01)
    assert second.draft_params == pytest.approx(410e6, rel=0.01)
    assert second.name == "Qwen1.5-110B"
    assert first.indifference_5pct[0] < first.indifference_1pct[0] < first.draft_params
    assert set(first.elasticity) == {"target_params", "draft_tokens", "target_tokens"}
    assert first.speculate is True
    assert any("loss law for the target" in w for w in first.warnings)


@pytest.mark.slow
def test_no_interval_is_invented():
    (answer,) = predict([OPT_30B], *PUBLISHED)
    assert answer.interval_90 is None
    assert "strongly correlated" in answer.interval_basis
    assert "no covariance" in answer.interval_basis


def write_law(path, form, law, **fields):
    path.write_text(json.dumps({"law": form, "coefficients": coefficients(law), **fields}))
    return str(path)


@pytest.mark.release
def test_a_covariance_gives_an_interval(tmp_path):
    loss_covariance = np.diag([0.002, 5.0, 15.0, 0.0006, 0.0004]) ** 2
    gap, gap_covariance = LogitGap(1.0, 1.5), np.diag([0.01, 0.01]) ** 2
    answer = predict(
        [OPT_30B],
        loss_law(
            write_law(
                tmp_path / "loss.json", "chinchilla", BESIROGLU, covariance=loss_covariance.tolist()
            )
        ),
        acceptance_law(
            write_law(tmp_path / "gap.json", "logit_gap", gap, covariance=gap_covariance.tolist())
        ),
    )[0]
    low, high = answer.interval_90.draft_params
    assert low < answer.draft_params < high < 1.2 * low
    assert "taken as independent" in answer.interval_basis


@pytest.mark.slow
def test_speculation_that_does_not_pay():
    (answer,) = predict([OPT_30B], *PUBLISHED, draft_overhead=0.9)
    assert answer.speculate is False
    assert answer.draft_params is None
    assert answer.lookahead_integer == 0
    assert answer.speedup_integer == 1.0
    assert "does not pay" in answer.warnings[0]


def test_a_law_that_leaves_the_probabilities_is_told():
    """The plane gives α ≥ 1 where target perplexities are huge: no number, a warning."""
    (answer,) = predict([Target(2e6, 180e9, 180e9)], *PUBLISHED)
    assert answer.draft_params is None
    assert answer.speedup is None
    assert "α ≥ 1" in answer.warnings[0]
    json.dumps(answer.to_json(), allow_nan=False)


def test_csv(tmp_path):
    path = tmp_path / "targets.csv"
    path.write_text("name,target_params,target_tokens\nOPT-30B,30e9,180B\nLlama-3-70B,70B,15T\n")
    found = targets_from_csv(path, draft_tokens=180e9)
    assert found == [
        Target(30e9, 180e9, 180e9, "OPT-30B"),
        Target(70e9, 180e9, 15e12, "Llama-3-70B"),
    ]
    with pytest.raises(
        SdslError, match="line 2: no draft_tokens; give the column, or --draft-tokens for all"
    ):
        targets_from_csv(path)
    # Capitals, spaces and blank lines do not matter; the line named is that of the file.
    path.write_text("Target_Params , Draft_Tokens,target_tokens\n\n30B,180B,180B\n\nx,1B,1B\n")
    with pytest.raises(SdslError, match="line 5: target_params is 'x'"):
        targets_from_csv(path)
    path.write_text("a;b\n1;2\n")
    with pytest.raises(SdslError, match="no column target_params; its columns are a, b"):
        targets_from_csv(path)
    path.write_text("target_params\n30B,1,2\n")
    with pytest.raises(SdslError, match="more cells than columns"):
        targets_from_csv(path, 1e9, 1e9)
    path.write_text("target_params\n-3\n")
    with pytest.raises(SdslError, match="line 2: target_params is -3; it must be positive"):
        targets_from_csv(path, 1e9, 1e9)
    path.write_text("target_params;draft_tokens\n1,300;1B\n")
    with pytest.raises(
        SdslError, match="line 2: target_params is '1,300', perhaps with a decimal comma"
    ):
        targets_from_csv(path, 1e9, 1e9)
    path.write_text("target_params\n")
    with pytest.raises(SdslError, match="no rows"):
        targets_from_csv(path, 1e9, 1e9)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("30e9", 30e9),
        ("30B", 30e9),
        ("1.5T", 1.5e12),
        ("180b", 180e9),
        ("7k", 7e3),
        ("1_000", 1000.0),
    ],
)
def test_counts(text, value):
    assert parse_count(text, "x") == pytest.approx(value)


@pytest.mark.parametrize("text", ["", "B", "thirty", "-1", "nan", "inf", "0", "30BB", "1e300"])
def test_counts_that_are_none(text):
    with pytest.raises(SdslError, match="x is"):
        parse_count(text, "x")


def test_law_files_that_are_wrong(tmp_path):
    with pytest.raises(SdslError, match="foo is no loss law; it must be one of besiroglu"):
        loss_law("foo")
    with pytest.raises(SdslError, match="cannot be read"):
        loss_law(str(tmp_path / "missing.json"))
    swapped = write_law(tmp_path / "plane.json", "affine_plane", PAPER_PLANE)
    with pytest.raises(SdslError, match="holds no loss law: its field law is affine_plane"):
        loss_law(swapped)
    (tmp_path / "few.json").write_text('{"law": "logit_gap", "coefficients": {"level": 1.0}}')
    with pytest.raises(SdslError, match="usable acceptance law"):
        acceptance_law(str(tmp_path / "few.json"))


@pytest.mark.parametrize(
    "draws",
    [
        {"level": [1.0, 2.0], "slope": [1.0]},
        {"level": 1.0, "slope": 2.0},
        {"level": [1.0, None], "slope": [1.0, 2.0]},
    ],
)
def test_draws_that_cannot_be_used(tmp_path, draws):
    path = write_law(tmp_path / "law.json", "logit_gap", LogitGap(1.0, 1.5), draws=draws)
    with pytest.raises(SdslError, match=r"draws that cannot be used|law\.json is damaged"):
        acceptance_law(path)


@pytest.mark.slow
def test_warnings_of_what_does_not_fit_together(tmp_path):
    (answer,) = predict([OPT_30B], loss_law("kaplan"), acceptance_law("paper"))
    assert any(
        "counts non-embedding parameters and the acceptance law total" in w for w in answer.warnings
    )
    falling = acceptance_law(write_law(tmp_path / "law.json", "logit_gap", LogitGap(1.0, -1.0)))
    (answer,) = predict([OPT_30B], loss_law("besiroglu"), falling)
    assert any("does not rise with the size" in w for w in answer.warnings)
    with pytest.raises(SdslError, match="may be given in draft_params"):
        acceptance_law(
            write_law(
                tmp_path / "x.json", "logit_gap", LogitGap(1.0, 1.0), valid={"params": [1, 2]}
            )
        )


@pytest.mark.slow
def test_a_draft_that_needs_a_lookahead_below_one(tmp_path):
    """Between the real and the whole condition the answer is no, with a bound on what any choice could gain."""
    gap = acceptance_law(write_law(tmp_path / "law.json", "logit_gap", LogitGap(-2.0, 1.0)))
    (answer,) = predict(
        [Target(1.35e9, 180e9, 3e12)], loss_law("besiroglu"), gap, draft_overhead=0.06
    )
    assert answer.speculate is False
    assert 0 < answer.lookahead < 1
    assert "gains more than" in answer.warnings[0]


def test_laws_too_far_outside_are_refused():
    with pytest.raises(SdslError, match="no finite loss and acceptance"):
        predict([Target(30e9, 1.0, 1.0)], *PUBLISHED)


def test_extreme_lookaheads():
    answer = best_lookahead(1e-5, acceptance=0.99999, verify_cost=30000.0)
    low, high = answer.lookahead_within_1pct
    with jax.enable_x64(True):
        values = np.asarray(
            speedup(0.99999, np.array([low - 1, low, high, high + 1.0]), 1e-5, 30000.0)
        )
    np.testing.assert_array_equal(
        values >= 0.99 * answer.speedup_integer, [False, True, True, False]
    )
    assert answer.break_even_cost > 1e-5
    assert best_lookahead(1e-9, acceptance=0.999999999).speculate is True


def test_best_lookahead():
    answer = best_lookahead(0.05, acceptance=0.7)
    assert answer.lookahead == pytest.approx(5.4803, abs=1e-4)
    assert (answer.lookahead_integer, answer.lookahead_within_1pct) == (6, [5, 6])
    assert answer.break_even_cost == pytest.approx(0.7)
    # A measured acceptance length is inverted at its own lookahead.
    length = sum(0.7**k for k in range(5))
    inverted = best_lookahead(0.05, acceptance_length=length, at_lookahead=4)
    assert inverted.acceptance == pytest.approx(0.7, rel=1e-9)
    assert best_lookahead(0.4, acceptance=0.3).speculate is False
    assert best_lookahead(0.1, acceptance=0.0).lookahead_integer == 0


def test_counts_that_engines_log_are_inverted_at_their_lookahead():
    """642 of 1,000 drafts in rounds of 4 are 1 + 4·0.642 tokens a round, as an acceptance length of that says too."""
    counted = best_lookahead(0.05, accepted=642, drafted=1000, at_lookahead=4)
    length = best_lookahead(0.05, acceptance_length=1 + 4 * 0.642, at_lookahead=4)
    assert counted.acceptance == pytest.approx(length.acceptance, rel=1e-9)
    assert counted.lookahead_integer == length.lookahead_integer
    low, high = counted.counts.acceptance_interval_90
    assert low < counted.acceptance < high
    first, last = counted.counts.lookahead_interval_90
    assert first <= counted.lookahead_integer <= last
    assert (counted.counts.rounds, counted.counts.accepted_share) == (250, 0.642)
    assert "independent" in counted.counts.interval_basis
    nothing = best_lookahead(0.05, accepted=0, drafted=1000, at_lookahead=4)
    assert nothing.speculate is False
    assert (
        nothing.counts.acceptance_interval_90[0]
        == 0
        < nothing.counts.acceptance_interval_90[1]
        < 0.02
    )


@pytest.mark.parametrize(
    ("alpha", "rounds", "lookahead"), [(0.7, 50, 4), (0.9, 30, 8), (0.1, 100, 3)]
)
def test_the_interval_of_counts_covers(alpha, rounds, lookahead):
    """Of 400 simulated logs 90% are covered, give or take 6.5 points: beyond 4 standard errors, 1 false alarm in 10,000 or so."""
    rng = np.random.default_rng(5)
    accepted = np.cumprod(rng.random((400, rounds, lookahead)) < alpha, axis=-1).sum(axis=(1, 2))
    found = [counted_acceptance(float(n), float(rounds * lookahead), lookahead) for n in accepted]
    covered = np.mean([each.low <= alpha <= each.high for each in found])
    assert covered == pytest.approx(0.9, abs=0.065)


def test_the_verify_cost_at_which_speculation_stops_paying():
    answer = best_lookahead(0.05, acceptance=0.7)
    most = answer.break_even_verify_cost
    # max over γ of τ(γ) − γ·d, by brute force.
    gammas = np.arange(1, 200)
    tokens = np.cumsum(0.7 ** np.arange(201))[1:200]
    assert most == pytest.approx(np.max(tokens - gammas * 0.05), rel=1e-12)
    assert best_lookahead(0.05, acceptance=0.7, verify_cost=0.999 * most).speculate is True
    assert best_lookahead(0.05, acceptance=0.7, verify_cost=1.001 * most).speculate is False
    assert break_even_verify_cost(0.3, 0.4) == pytest.approx(0.9)
    assert break_even_verify_cost(0.0, 0.1) == pytest.approx(0.9)


def test_how_well_a_law_fits_stands_with_it(tmp_path):
    """The paper's figures come from the preset alone; those of a fit from its JSON."""
    r_squared, error = PAPER_PLANE.about.r_squared, PAPER_PLANE.about.mean_squared_error**0.5
    assert quality(PUBLISHED[1]) == (
        f"the acceptance law paper has R² = {r_squared} and a root mean square error of {error:.2g} in α, over an unpublished "
        "number of pairs"
    )
    fitted = write_law(
        tmp_path / "gap.json", "logit_gap", LogitGap(1.0, 1.5), r_squared=0.93, rmse=0.012, n=1440
    )
    assert "has R² = 0.93 and a root mean square error of 0.012 in α, over 1,440 pairs" in quality(
        acceptance_law(fitted)
    )
    bare = acceptance_law(write_law(tmp_path / "bare.json", "logit_gap", LogitGap(1.0, 1.5)))
    assert "is not known" in quality(bare)
    # The residuals of loss laws are logarithms, and no error of α.
    loss = loss_law(write_law(tmp_path / "loss.json", "chinchilla", BESIROGLU, rmse=0.01))
    assert loss.law.about.mean_squared_error is None


def test_a_suffix_that_was_forgotten():
    far = far_outside(
        *PUBLISHED, {"draft": {"tokens": 180.0}, "target": {"params": 70e9, "tokens": 15e12}}
    )
    assert far == [
        "far outside what the laws were fitted on: 180 training tokens of the draft (27,777,778 times); is a suffix missing, "
        "as in 70 for 70B?"
    ]
    assert (
        "70 parameters of the target"
        in far_outside(*PUBLISHED, {"target": {"params": 70.0, "tokens": 1e12}})[0]
    )
    assert (
        far_outside(
            *PUBLISHED,
            {
                "draft": {"params": 60e6, "tokens": 1e12},
                "target": {"params": 70e9, "tokens": 15e12},
            },
        )
        == []
    )
    (answer,) = predict([Target(70e9, 180.0, 15e12)], *PUBLISHED)
    assert any("is a suffix missing" in w for w in answer.warnings)


def test_the_command_that_knows_a_device():
    assert codesign_command(Target(70e9, 180e9, 15e12), "besiroglu", "paper") == (
        "sdsl codesign --target-params 70B --target-tokens 15T --draft-tokens 180B --hardware h100 --devices 4"
    )
    own = Target(1.2345e9, 180e9, 15e12, "a b")
    assert codesign_command(own, "kaplan", "my fits.json#logit_gap") == (
        "sdsl codesign --target-params 1234500000 --target-tokens 15T --draft-tokens 180B --target-name 'a b' --loss-law kaplan "
        "--acceptance-law 'my fits.json#logit_gap' --hardware h100"
    )


def test_answers_print_well():
    (answer,) = predict([Target(70e9, 180e9, 15e12, "Llama <70B>")])
    assert repr(answer) == (
        "Prediction(target Llama <70B> (70B): draft 311M, γ* 9.7 (10), speed-up 2.70×)"
    )
    assert (
        "<caption>The draft to train for Llama &lt;70B&gt; (70B)</caption>" in answer._repr_html_()
    )
    assert next(iter(answer.to_json())) == "name"
    (nameless,) = predict([OPT_30B], draft_overhead=0.9)
    assert repr(nameless) == "Prediction(target 30B: speed-up does not pay)"
    assert "name" not in nameless.to_json()
    gamma = best_lookahead(0.05, acceptance=0.7)
    assert repr(gamma) == "LookaheadAnswer(γ 6 (γ* = 5.48), speed-up 2.353×)"
    assert '<th scope="row">tokens per round</th>' in gamma._repr_html_()


@pytest.mark.parametrize(
    ("alpha", "cost", "verify", "gamma"),
    [(0.813, 0.596, 1.0, 5), (0.7, 0.05, 1.0, 4), (0.6, 0.1, 1.7, 3), (0.0, 0.2, 1.0, 1)],
)
def test_the_lookahead_in_use(alpha, cost, verify, gamma):
    """S, its break-even α and its limit from sums; the best γ and what is lost, by trying all."""

    def speedup(alpha, gamma):
        return sum(alpha**k for k in range(gamma + 1)) / (gamma * cost + verify if gamma else 1)

    found = best_lookahead(cost, alpha, verify_cost=verify, lookahead=gamma)
    mine = found.running
    assert mine.lookahead == gamma
    assert mine.speedup == pytest.approx(speedup(alpha, gamma), rel=1e-12)
    assert mine.tokens_per_round == pytest.approx(sum(alpha**k for k in range(gamma + 1)))
    edge = mine.break_even_acceptance
    assert speedup(edge, gamma) == pytest.approx(1, rel=1e-12)
    assert speedup(edge - 1e-6, gamma) < 1 < speedup(edge + 1e-6, gamma)
    assert mine.pays == (speedup(alpha, gamma) > 1) == (alpha > edge)
    assert mine.ceiling == pytest.approx(speedup(1.0, gamma), rel=1e-12)
    best = max(range(60), key=lambda g: speedup(alpha, g))
    assert found.lookahead_integer == best
    assert mine.loss == pytest.approx(1 - mine.speedup / speedup(alpha, best), abs=1e-12)
    assert best_lookahead(cost, alpha, verify_cost=verify).running is None


def test_the_lookahead_in_use_turns_at_its_break_even_acceptance():
    """A draft pays above its own break-even α and not below; where none pays, the break-even is 1."""
    edge = best_lookahead(0.596, 0.5, lookahead=5).running.break_even_acceptance
    assert best_lookahead(0.596, edge + 1e-6, lookahead=5).running.pays
    assert not best_lookahead(0.596, edge - 1e-6, lookahead=5).running.pays
    # Five drafts of 1.1 steps and a pass of 1 take 6.5 steps, for at most 6 tokens.
    never = best_lookahead(1.1, 0.999999, lookahead=5).running
    assert never.break_even_acceptance == 1
    assert never.ceiling == pytest.approx(6 / 6.5)
    assert not never.pays
    # The best is then plain decoding, and that of the best loses nothing.
    assert never.loss == pytest.approx(1 - never.speedup)
    assert best_lookahead(0.05, 0.7, lookahead=6).running.loss == 0


def test_two_speeds_stand_for_a_cost():
    by_speed = best_lookahead(acceptance=0.813, target_tps=39.3, draft_tps=65.9, lookahead=5)
    by_cost = best_lookahead(39.3 / 65.9, 0.813, lookahead=5)
    assert by_speed.cost == 39.3 / 65.9
    assert by_speed.running == by_cost.running
    found = by_speed.to_json()
    assert (found["target_tps"], found["draft_tps"]) == (39.3, 65.9)
    assert found["running"]["lookahead"] == 5
    assert by_cost.to_json()["target_tps"] is None
    assert '<th scope="row">speed-up at γ = 5</th>' in by_speed._repr_html_()


def test_words_about_the_lookahead_in_use(capsys):
    command.lookahead(target_tps=39.3, draft_tps=65.9, acceptance="81.3%", lookahead=5)
    out = capsys.readouterr().out
    assert "cost of a draft step 39.3 / 65.9 tokens/s = 0.596 target steps\n" in out
    assert "γ = 5: speed-up 0.955×, 3.80 tokens per round; no faster than plain" in out
    assert "it pays above α = 0.832; as α → 1 its speed-up reaches 1.507×" in out
    assert "it loses 15.9% against γ = 1\n" in out
    command.lookahead(target_tps=65, draft_tps=39, acceptance="0.5", lookahead=4)
    out = capsys.readouterr().out
    assert "are the two swapped?" in out
    assert "no acceptance makes it pay" in out
    assert "against plain decoding" in out
    command.lookahead(cost=0.05, acceptance="0.7", lookahead=6)
    assert "it is the best lookahead\n" in capsys.readouterr().out


@pytest.mark.parametrize("document", [Prediction, LookaheadAnswer])
def test_every_key_has_a_meaning(document):
    for name, entry in schema_of(document).items():
        assert entry["description"], name
        assert all(nested["description"] for nested in entry.get("keys", {}).values()), name


@pytest.mark.parametrize(
    ("text", "share"),
    [("0.8", 0.8), ("80%", 0.8), (" 70.7% ", 0.707), ("80", 80.0), ("1e-1", 0.1)],
)
def test_shares(text, share):
    assert parse_share(text, "x") == pytest.approx(share)


def test_percent_is_asked_about():
    assert share_hint(80) == "; write it as a share: 0.8"
    assert share_hint(1.0) == share_hint(-3.0) == share_hint(250.0) == ""
    with pytest.raises(SdslError, match="x is '80 percent'"):
        parse_share("80 percent", "x")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(cost=0.1, acceptance=80.0), "write it as a share: 0.8"),
        (dict(cost=0.1, accepted=10.0), "give both --accepted and --drafted"),
        (dict(cost=0.1, accepted=10.0, drafted=20.0), "give --at-lookahead"),
        (dict(cost=0.1, accepted=10.0, drafted=20.0, acceptance=0.5), "give either"),
        (
            dict(cost=0.1, accepted=21.0, drafted=20.0, at_lookahead=4),
            "accepted drafts are some of those proposed",
        ),
        (dict(cost=0.1, accepted=2.5, drafted=20.0, at_lookahead=4), "must be a whole number"),
        (dict(cost=0.1, accepted=2.0, drafted=3.0, at_lookahead=4), "less than one round of 4"),
        (
            dict(cost=0.1, accepted=20.0, drafted=20.0, at_lookahead=4),
            "all 20 drafts were accepted",
        ),
        (dict(cost=0.1), "give either"),
        (dict(cost=0.1, acceptance=0.5, acceptance_length=2.0), "give either"),
        (dict(cost=0.1, acceptance=1.0), "below 1"),
        (dict(cost=-1.0, acceptance=0.5), "must be positive"),
        (dict(cost=0.1, acceptance_length=2.0), "--at-lookahead"),
        (dict(cost=0.1, acceptance=0.5, at_lookahead=4), "belongs to --acceptance-length"),
        (dict(cost=0.1, acceptance=0.5, verify_cost=0.5), "at least 1"),
        (dict(cost=0.1, acceptance_length=6.0, at_lookahead=5), "below 6"),
        (dict(acceptance=0.5), "give either --cost, or --target-tps and --draft-tps"),
        (dict(cost=0.1, acceptance=0.5, target_tps=3.0, draft_tps=9.0), "give either --cost, or"),
        (dict(acceptance=0.5, draft_tps=9.0), "give both --target-tps and --draft-tps"),
        (dict(acceptance=0.5, target_tps=0.0, draft_tps=9.0), "--target-tps is 0 tokens per"),
        (dict(acceptance=0.5, target_tps=3.0, draft_tps=math.nan), "--draft-tps is nan tokens per"),
        (dict(cost=math.inf, acceptance=0.5), "must be positive and finite"),
        (dict(cost=0.1, acceptance=0.5, lookahead=0), "--lookahead is 0; it must be the drafts"),
        (dict(cost=0.1, acceptance=0.5, lookahead=1025), "--lookahead is 1025"),
    ],
)
def test_wrong_questions(arguments, message):
    with pytest.raises(SdslError, match=message):
        best_lookahead(**arguments)


def sdsl(*arguments):
    return subprocess.run(
        [sys.executable, "-m", "sdsl_jax.cli", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def test_wrong_input_is_one_sentence():
    done = sdsl(
        "predict", "--target-params", "30e9", "--draft-tokens", "0", "--target-tokens", "1T"
    )
    assert done.returncode == 2
    assert (
        done.stderr == "sdsl: error: --draft-tokens is 0; it must be positive, and at most 1e+18.\n"
    )


@pytest.mark.slow
def test_the_commands():
    """As a user types them: a table, and JSON."""
    question = ["--draft-tokens", "180e9", "--target-tokens", "180e9"]
    done = sdsl("predict", "--target-params", "30e9,70B", *question, "--json")
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [a["target_params"] for a in answers] == [30e9, 70e9]
    done = sdsl("predict", "--target-params", "30e9", *question)
    assert "189M" in done.stdout
    assert "only FLOPs" in done.stdout
    assert (
        "sdsl codesign --target-params 30B --target-tokens 180B --draft-tokens 180B" in done.stdout
    )
    assert "within 1%" in done.stdout
    done = sdsl("lookahead", "--acceptance", ".7", "--cost", ".05")
    assert "best lookahead γ = 6" in done.stdout
    assert "assumed: a verify pass" in done.stdout
    assert "give --verify-cost" in done.stdout
    done = sdsl(
        "lookahead",
        "--accepted",
        "642",
        "--drafted",
        "1k",
        "--at-lookahead",
        "4",
        "--cost",
        ".05",
        "--json",
    )
    found = json.loads(done.stdout)
    assert (found["accepted"], found["drafted"], found["verify_cost_assumed"]) == (642, 1000, True)


def several_laws(path):
    draws = {"level": [1.0, 1.1, 0.9], "slope": [1.5, 1.4, 1.6]}
    gap = {"law": "logit_gap", "coefficients": {"level": 1.0, "slope": 1.5}, "draws": draws}
    power = {
        "law": "power_law",
        "coefficients": {"scale": 0.9, "exponent": 0.2, "target_exponent": 0.05},
    }
    loss = {"law": "chinchilla", "coefficients": coefficients(BESIROGLU)}
    loss["draws"] = {name: [value] * 3 for name, value in loss["coefficients"].items()}
    path.write_text(json.dumps({"loss_law": loss, "acceptance_laws": [power, gap]}))
    return str(path)


def test_one_of_several_acceptance_laws(tmp_path):
    file = several_laws(tmp_path / "fits.json")
    assert type(acceptance_law(file).law).__name__ == "PowerLaw"  # the first is the best
    chosen = acceptance_law(f"{file}#logit_gap")
    assert chosen.law.slope == 1.5
    assert chosen.name == f"{file}#logit_gap"
    # Its draws belong to those of the loss law of the same file, resample by resample.
    assert chosen.joint == loss_law(file).joint == tmp_path / "fits.json"
    single = write_law(tmp_path / "gap.json", "logit_gap", LogitGap(1.0, 1.5))
    assert acceptance_law(f"{single}#logit_gap").law == acceptance_law(single).law.__class__(
        1.0, 1.5, about=acceptance_law(single).law.about
    )


def test_a_law_that_is_not_among_several(tmp_path):
    file = several_laws(tmp_path / "fits.json")
    with pytest.raises(
        SdslError, match=r"no acceptance law named 'affine_plane'; it holds power_law, logit_gap\."
    ):
        acceptance_law(f"{file}#affine_plane")
    with pytest.raises(
        SdslError, match="no acceptance law named ''; it holds power_law, logit_gap"
    ):
        acceptance_law(f"{file}#")
    with pytest.raises(SdslError, match="cannot be read"):
        acceptance_law(f"{tmp_path}/nowhere.json#logit_gap")


def test_a_file_may_have_a_hash_in_its_name(tmp_path):
    file = several_laws(tmp_path / "run#3.json")
    assert acceptance_law(file).law == acceptance_law(f"{file}#power_law").law


@pytest.mark.parametrize(
    ("target", "words"),
    [
        (
            Target(70e9, 100e6, 15e12),
            "the draft has fewer training tokens (100M) than parameters (",
        ),
        (
            Target(70e9, 180e9, 15e9),
            "the target has fewer training tokens (15B) than parameters (70B)",
        ),
        (
            Target(70e12, 180e9, 1e14),
            "far outside what the laws were fitted on: 70T parameters of the target (",
        ),
    ],
)
def test_units_that_are_probably_wrong(target, words):
    (answer,) = predict([target], *PUBLISHED)
    assert any(words in warning for warning in answer.warnings)
    (answer,) = predict([OPT_30B], *PUBLISHED)
    assert not any("suffix" in warning for warning in answer.warnings)


def test_a_target_without_its_suffix(tmp_path):
    path = tmp_path / "targets.csv"
    path.write_text(
        'target_params,draft_tokens,target_tokens\n"13,000,000,000",180B,180B\n\n70,180B,180B\n'
    )
    with pytest.raises(
        SdslError, match=r"line 4: target_params is 70, too few for any model; did you mean 70B\?"
    ):
        targets_from_csv(path)


@pytest.mark.parametrize(
    "change", [{"text": ["a"]}, {"params_count": 3}, {"coefficients": {"E": 10**400}}, {"draws": 3}]
)
def test_law_files_of_other_kinds_are_one_sentence(tmp_path, change):
    path = tmp_path / "law.json"
    good = {
        "law": "chinchilla",
        "coefficients": {"E": 1.7, "A": 400.0, "B": 400.0, "a": 0.3, "b": 0.3},
    }
    path.write_text(json.dumps(good | change))
    with pytest.raises(SdslError, match=r"law\.json (is damaged|does not hold)"):
        loss_law(str(path))
    path.write_text('{"a":' * 100_000)
    with pytest.raises(SdslError, match="nested too deeply"):
        loss_law(str(path))


def test_the_best_lookahead_of_measured_survival_is_exact():
    survival, cost, verify = np.cumprod([0.92, 0.74, 0.56]), 0.3, 1.2
    best = best_measured_lookahead(survival, 0.56, cost, verify)
    speedups = [1.0, *((1 + survival[:g].sum()) / (g * cost + verify) for g in (1, 2, 3))]
    assert best.speedups == pytest.approx(speedups)
    assert best.lookahead_integer == int(np.argmax(speedups))
    assert best.speedup_integer == max(best.speedups)
    assert best.lookahead_interval_90 is None
    # At the break-even cost the best γ is as fast as plain decoding, and just above it none is.
    at = best.break_even_cost
    assert max(best_measured_lookahead(survival, 0.56, at, verify).speedups[1:]) == pytest.approx(1)
    assert best_measured_lookahead(survival, 0.56, 1.001 * at, verify).lookahead_integer == 0
    assert best_measured_lookahead([0.1], 0.1, 0.2, verify).break_even_cost == 0


def test_measured_geometric_survival_gives_the_lookahead_of_its_acceptance():
    alpha, cost, verify = 0.8, 0.05, 1.1
    known = best_lookahead(cost, acceptance=alpha, verify_cost=verify)
    long = best_measured_lookahead(alpha ** np.arange(1, 40), alpha, cost, verify)
    assert long.lookahead_integer == known.lookahead_integer
    assert long.speedup_integer == pytest.approx(known.speedup_integer)
    assert long.break_even_cost == pytest.approx(known.break_even_cost, abs=1e-6)
    # Of three measured positions the rest is an extrapolation, here a true one.
    short = best_measured_lookahead(alpha ** np.arange(1, 4), alpha, cost, verify)
    assert short.lookahead_integer == 3
    assert short.extrapolated_lookahead == known.lookahead_integer
    assert short.extrapolated_speedup == pytest.approx(known.speedup_integer)


def test_counts_bound_the_best_measured_lookahead():
    """Of 300 servers that accept 0.8 at four positions, the 90% range holds the true best γ of 3 in
    at least 85%: best lookaheads are whole, so it covers more often than it says."""
    random, truth = np.random.default_rng(0), 0.8 ** np.arange(1, 5)
    best = best_measured_lookahead(truth, 0.8, 0.25).lookahead_integer
    assert best == 3
    held = 0
    for _ in range(300):
        steps = [200]
        for _ in range(4):
            steps.append(int(random.binomial(steps[-1], 0.8)))
        low, high = best_measured_lookahead(
            np.array(steps[1:]) / 200, 0.8, 0.25, tested=steps[:-1]
        ).lookahead_interval_90
        held += low <= best <= high
    assert held >= 0.85 * 300


@pytest.mark.parametrize("survival", [[], [0.5, 0.6], [1.2], [math.nan]])
def test_survival_that_cannot_be_is_refused(survival):
    with pytest.raises(SdslError, match="survival must"):
        best_measured_lookahead(survival, 0.5, 0.1)
