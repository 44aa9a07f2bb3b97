import dataclasses
import json
import math

import numpy as np
import pytest
from conftest import TINY
from evidence_records import exact, records

from sdsl_jax.config import StudyConfig, from_dict
from sdsl_jax.evidence import Evidence, StudyRecords, forecast, gather, predictions
from sdsl_jax.evidence.claims import claims, data_identified, sensitivity
from sdsl_jax.evidence.common import measured_speedups
from sdsl_jax.evidence.fit_quality import coverage, residuals
from sdsl_jax.evidence.holdout import holdout
from sdsl_jax.evidence.law_comparison import acceptance_laws, law_inputs
from sdsl_jax.evidence.predictions import Predictions, Rung, _optimum, held_out
from sdsl_jax.evidence.protocol import ProtocolSummary
from sdsl_jax.fitting import fit_all
from sdsl_jax.fitting.discrepancy import bent_laws, scatter_alone
from sdsl_jax.fitting.law_files import LawRecord
from sdsl_jax.models import count, member
from sdsl_jax.records import (
    ExpectedRecord,
    LatencyRecord,
    ModelRecord,
    longest_trained,
    write_json,
)
from sdsl_jax.records.documents import from_json, schema_of, to_json
from sdsl_jax.theory import (
    AffinePlane,
    ChinchillaLaw,
    FlopCost,
    LogitPlane,
    ModelPoint,
    PowerLaw,
    tokens_per_round,
)

LOSS, ALPHA = ChinchillaLaw(1.1, 6.0, 40.0, 0.25, 0.35), LogitPlane(2.4, 2.2, 1.6)
SIZES = (3_000, 6_000, 12_000, 25_000, 50_000, 100_000)
TARGETS = (120_000, 250_000, 500_000)
BUDGETS = (1_000_000, 4_000_000, 16_000_000)
CONFIG = from_dict(
    StudyConfig,
    TINY
    | {
        "data": {"sequence_length": 128},
        "ladder": {
            "draft_params": SIZES,
            "draft_tokens": BUDGETS,
            "target_params": TARGETS,
            "target_tokens": BUDGETS[-2:],
        },
        "holdout": {"draft_params": [100_000], "target_params": [500_000]},
        "measure": {},
        "fit": {"starts": 6, "bootstrap": 24},
    },
)


def made(
    role: str, size: int, tokens: int, loss: float, seed: int = 0, layers: int = 1
) -> ModelRecord:
    n = count(member(CONFIG.family, size, CONFIG.data.vocab_size), 0).nonembedding
    record = ModelRecord(
        f"{role}-{size}-{tokens}-{seed}", role, n, n + 4096, tokens, seed, loss, math.exp(loss)
    )
    more = {
        "flops_per_token": 2.0 * n + 40_000,
        "layers": layers,
        "bits_per_byte": loss / math.log(2),
        "epochs": 1.0,
    }
    return dataclasses.replace(record, validation_loss_nats=loss - 0.3, **more)


def world(noise: float = 0.0, law=ALPHA, step: float = 0.0, seed: int = 0) -> StudyRecords:
    """A ladder whose losses and acceptances follow known laws, with expected tokens per round of
    independent acceptance.

    Args:
      noise: standard deviation of ln loss, and of α.
      law: of acceptance.
      step: in ln loss, by which models of one layer, those below 40,000 parameters, lie above the
        law.
      seed: of the noise.
    """
    random = np.random.default_rng(seed)
    models = []
    for role, sizes, budgets in (("draft", SIZES, BUDGETS), ("target", TARGETS, BUDGETS[-2:])):
        for size in sizes:
            for tokens in budgets:
                model = made(role, size, tokens, 1.0, layers=1 if size < 40_000 else 2)
                shift = step * (size < 40_000) + noise * random.standard_normal()
                loss = float(LOSS(model.params_nonembedding, tokens)) * math.exp(shift)
                models.append(made(role, size, tokens, loss, layers=model.layers))
    acceptance, expected = [], []
    for draft in (m for m in models if m.role == "draft"):
        for target in (m for m in models if m.role == "target"):
            alpha = float(law(point(draft), point(target))) + noise * random.standard_normal()
            ids = draft.model_id, target.model_id
            acceptance.append(exact(*ids, alpha))
            expected += [
                ExpectedRecord(*ids, g, 1.0, "base text", float(tokens_per_round(alpha, g)))
                for g in range(1, 13)
            ]
    fits = fit_all(CONFIG, models, acceptance, latency(models))
    return records(
        config=CONFIG, models=models, acceptance=acceptance, expected=expected, fits=fits
    )


def point(model: ModelRecord) -> ModelPoint:
    return ModelPoint(model.params_nonembedding, model.loss_nats, model.train_tokens)


def latency(models: list[ModelRecord]) -> list[LatencyRecord]:
    return [
        LatencyRecord(m.model_id, "decode", 1, 1, 64, 1e-4 + 1e-9 * m.params_nonembedding)
        for m in models
    ]


def published(found: StudyRecords) -> StudyRecords:
    """The same records with predictions made from the seen part alone."""
    kept = {(rung.role, rung.params) for rung in held_out(CONFIG)}
    seen = [m for m in found.models if (m.role, m.params_nonembedding) not in kept]
    ids = {m.model_id for m in seen}
    pairs = [r for r in found.acceptance if r.draft_id in ids and r.target_id in ids]
    fits = fit_all(CONFIG.seen, seen, pairs, latency(seen))
    return found.replaced(predictions=forecast(CONFIG, seen, fits))


def predictions_of(records: StudyRecords) -> Predictions:
    return records.document("predictions", Predictions)


@pytest.fixture(scope="module")
def quiet() -> StudyRecords:
    return published(world(noise=0.0005))


@pytest.mark.slow
def test_laws_that_hold_predict_what_was_held_out(quiet):
    """Noise of 0.05%: the largest target is twice the largest seen, and its loss is predicted to well within 1%."""
    found = holdout(quiet)
    # A share of intervals as good as these has no goal to meet: all pairs lie inside.
    assert all(goal.met for name, goal in found.goals.items() if name != "alpha_coverage")
    assert found.goals["alpha_mae"].reached < 0.003
    assert {row.model_id for row in found.losses} == {
        *(f"draft-100000-{b}-0" for b in BUDGETS),
        *(f"target-500000-{b}-0" for b in BUDGETS[-2:]),
    }
    # 6 drafts × 3 budgets × 2 targets of the held-out size, and the held-out draft with the 4 seen
    # targets.
    assert len(found.pairs) == 18 * 2 + 3 * 4
    # Shares inside, and what the forecast expected of them, for every group.
    groups = {row.group: row for row in found.coverage}
    assert groups["pairs"].n == len(found.pairs)
    assert groups["pairs"].inside == found.alpha_coverage == found.goals["alpha_coverage"].reached
    assert groups["losses"].inside == found.loss_coverage
    kinds = [row.n for name, row in groups.items() if "held" in name]
    assert sum(kinds) == groups["pairs"].n
    assert all(row.expected_low <= row.expected_high for row in found.coverage)
    largest = [row for row in found.losses if row.role == "target"]
    assert all(row.extrapolation == pytest.approx(2, rel=0.1) for row in largest)
    strategies = found.choice.strategies
    assert strategies["best of the ladder by predicted α"].regret < 0.005
    assert strategies["200× rule, γ = 4"].regret > 0.02
    assert all(s.regret >= 0 for s in strategies.values())


@pytest.mark.slow
def test_predictions_do_not_look_at_what_is_held_out(quiet):
    """Other records of held-out models change nothing in what is published."""
    kept = {(rung.role, rung.params) for rung in held_out(CONFIG)}
    changed = [
        dataclasses.replace(m, loss_nats=9.0) if (m.role, m.params_nonembedding) in kept else m
        for m in quiet.models
    ]
    again = published(quiet.replaced(models=changed))
    assert predictions_of(again) == predictions_of(quiet)


@pytest.mark.slow
def test_laws_draw_errors_of_their_own(quiet, monkeypatch):
    """Signs of the waves of any two laws, 24 draws of 32: |r| > 0.1 has a chance of 0.6% for two laws
    whose draws are independent, of 12% for some two of seven; the seed is fixed."""
    drawn = []

    def watched(*arguments):
        drawn.append(bent_laws(*arguments))
        return drawn[-1]

    monkeypatch.setattr(predictions, "bent_laws", watched)
    published(quiet)
    waves = [next(iter(law.errors.values())).cosine[1:].ravel() for law in drawn]
    assert len(waves) == 7
    between = np.corrcoef(np.sign(waves))[np.triu_indices(7, 1)]
    assert np.abs(between).max() < 0.1


def test_pairs_that_nobody_would_use_are_reported_apart():
    """A draft as large as its target, or larger, is in a group of its own and in no other."""
    sizes = np.asarray([(1e5, 2e5), (3e5, 2e5), (2e5, 2e5), (3e5, 5e5)])
    held = np.asarray([(False, True), (True, False), (True, True), (True, True)])
    groups = predictions.pair_groups(sizes, held, smaller_drafts=True)
    np.testing.assert_array_equal(groups[predictions.PAIRS], [True, False, False, True])
    np.testing.assert_array_equal(groups[predictions.LARGER_DRAFTS], [False, True, True, False])
    np.testing.assert_array_equal(groups["both held out"], [False, False, False, True])
    np.testing.assert_array_equal(groups["draft of 300k"], [False, False, False, True])
    assert "held-out draft, seen target" not in groups
    everything = predictions.pair_groups(sizes, held, smaller_drafts=False)
    assert everything[predictions.PAIRS].all()
    assert predictions.LARGER_DRAFTS not in everything


@pytest.mark.slow
def test_an_acceptance_that_reaches_one_has_no_finite_optimum(quiet):
    """The plane puts α of every draft at 1.2: γ* and S* are infinite in every draw, and the longest lookahead stands for them."""
    always = AffinePlane(0.0, 0.0, 1.2)
    draws = AffinePlane(np.zeros(24), np.zeros(24), np.full(24, 1.2))
    certain = scatter_alone(0.0, "acceptance probability", 24)
    optimum = _optimum(
        bent_laws(
            quiet.fits.loss_law.form_error(),
            quiet.laws.loss,
            quiet.laws.loss_draws,
            np.random.default_rng(0),
        ),
        bent_laws(certain, always, draws, np.random.default_rng(1)),
        quiet.laws.rule,
        Rung("target", 500_000, BUDGETS[-1]),
        BUDGETS[-1],
        (SIZES[0] / 3, 500_000.0),
        math.nan,
        0.9,
    )
    assert not math.isfinite(optimum.lookahead)
    assert not np.isfinite(optimum.interval["lookahead"]).any()
    kept = dataclasses.replace(optimum, lookahead=math.nan)  # as it is read from JSON
    for found in (optimum, kept):
        predictions = dataclasses.replace(predictions_of(quiet), optimum=found)
        choice = holdout(quiet.replaced(predictions=predictions)).choice
        assert choice.strategies["predicted N* and γ*"].lookahead == 12
        assert choice.predicted_speedup_error is None


@pytest.mark.release
def test_a_step_between_depths_is_named():
    """Models of one layer 4% worse than a law of size allows: without them the largest loss is predicted far better."""
    rows = holdout(published(world(noise=0.0005, step=0.04))).loss_by_depth
    assert [row.least_layers for row in rows] == [1, 2]
    worst = [max(abs(e.error) for e in row.errors) for row in rows]
    assert worst[0] > 0.01 > 3 * worst[1]
    assert rows[0].rmse > 5 * rows[1].rmse


@pytest.mark.slow
def test_the_law_that_made_the_records_wins(quiet):
    found = acceptance_laws(quiet)
    assert all("logit_plane" in laws for laws in found.winners.values())
    assert found.winners["left_out_drafts"] == ["logit_plane"]
    by_law = {row.law: row for row in found.laws}
    assert by_law["logit_plane"].left_out_drafts.rmse < 0.001
    assert by_law["power_law"].left_out_drafts.rmse > 0.005
    for row in found.laws:
        test = row.left_out_drafts
        assert test.rmse_low <= test.rmse <= test.rmse_high
        assert test.regret >= 0
        assert row.left_out_domains is None


@pytest.mark.release
def test_the_best_count_is_found():
    """Acceptance as a power law in the total number of parameters."""
    law = PowerLaw(4.0, 0.35, 0.05)

    def total(draft: ModelPoint, target: ModelPoint):
        return law(
            draft._replace(params=draft.params + 4096), target._replace(params=target.params + 4096)
        )

    found = law_inputs(world(law=total))
    assert found.best_count["power_law"] == "total parameters"
    errors = {row.input: row.power_law for row in found.by_count}
    assert errors["total parameters"] < 1e-5 < 1e-3 < errors["non-embedding parameters"]


@pytest.mark.slow
def test_claims_are_those_of_the_laws(quiet):
    """M/N* by brute force over sizes and lookaheads; intervals hold their estimates; 200 is not near."""
    found = {row.claim: row for row in claims(quiet).claims}
    laws, ratios = quiet.laws, []
    for target in longest_trained(quiet.models, "target"):
        n = np.geomspace(1000, target.params_nonembedding, 4000)[:, None]
        loss = float(laws.loss(target.params_nonembedding, target.train_tokens))
        alpha = laws.acceptance["logit_plane"](
            ModelPoint(n, laws.loss(n, BUDGETS[-1]), BUDGETS[-1]),
            ModelPoint(target.params_nonembedding, loss),
        )
        cost = FlopCost(laws.rule, float(target.params_nonembedding)).draft_step(n)
        gamma = np.linspace(0.5, 20, 400)[None]
        speed = np.asarray((1 - alpha ** (gamma + 1)) / (1 - alpha) / (gamma * cost + 1))
        ratios.append(target.params_nonembedding / n[speed.max(axis=1).argmax(), 0])
    ratio = found["the best draft is about 200 times smaller than its target"]
    assert ratio.estimate == pytest.approx(np.mean(ratios), rel=0.01)
    assert ratio.answer == "no"
    for row in found.values():
        assert row.low <= row.high
        assert row.answer in ("yes", "no", "undecided")
    dominates = found["the draft's perplexity dominates acceptance, nat for nat"]
    assert dominates.answer == "undecided"
    assert "only 3 training runs of targets" in dominates.quantity
    assert (
        found["the draft's perplexity dominates acceptance, over the range of this ladder"].answer
        == "yes"
    )
    assert dominates.estimate == pytest.approx(1.6 / 2.2, rel=0.05)


@pytest.mark.slow
def test_sensitivities_are_differences(quiet):
    """ln N* of the largest target, moved by a coefficient: the implicit derivative against a central difference."""
    alone = [m for m in quiet.models if m.role == "draft"] + [
        longest_trained(quiet.models, "target")[-1]
    ]
    first, *others = quiet.fits.acceptance_laws
    assert first.law == "logit_plane"
    row = next(r for r in sensitivity(quiet).rows if r.coefficient == "level")
    step, logs = 1e-3, []
    for sign in (-1, 1):
        level = first.coefficients["level"] + sign * step
        moved = dataclasses.replace(first, coefficients=first.coefficients | {"level": level})
        fits = dataclasses.replace(quiet.fits, acceptance_laws=[moved, *others])
        found = claims(quiet.replaced(models=alone, fits=fits))
        logs.append(-math.log(found.claims[0].estimate))  # ln N* up to ln M
    assert row.log_draft_params / row.standard_error == pytest.approx(
        (logs[1] - logs[0]) / (2 * step), rel=1e-2
    )


@pytest.mark.release
def test_residuals_know_what_sizes_share():
    """Independent noise: the adjusted share between sizes is near 0, for 22 rows of 9 sizes within ±0.5; a step: near 1."""
    assert abs(residuals(world(noise=0.01, seed=2)).loss_share_between_sizes) < 0.5
    stepped = residuals(world(noise=0.0005, step=0.06))
    assert stepped.loss_share_between_sizes > 0.6
    assert len(stepped.loss_points) == 24


@pytest.mark.slow
def test_coverage_is_counted_where_it_is_asked_for(quiet):
    assert coverage(quiet) is None
    config = dataclasses.replace(CONFIG, fit=dataclasses.replace(CONFIG.fit, coverage=20))
    found = coverage(quiet.replaced(config=config))
    assert found.simulations == 20
    for row in found.coverage.values():
        assert 0 <= row.low <= row.share <= row.high <= 1


@pytest.mark.slow
def test_measured_speedups_and_regret(quiet):
    target = longest_trained(quiet.models, "target")[0]
    found = measured_speedups(longest_trained(quiet.models, "draft"), quiet.expected, target)
    assert found.speedup.shape == (len(SIZES), 12)
    best = np.unravel_index(found.speedup.argmax(), found.speedup.shape)
    assert found.regret(best[0], int(found.lookaheads[best[1]])) == 0
    assert found.regret(0, 0) == pytest.approx(1 - 1 / found.best)
    alpha = np.full(len(SIZES), 0.0)
    assert found.choice(alpha)[1] == 0  # a draft that nothing is accepted of: plain decoding
    assert measured_speedups(longest_trained(quiet.models, "draft"), [], target) is None


@pytest.mark.slow
def test_evidence_is_read_as_it_was_written(quiet, tmp_path):
    """Every key of `evidence.json` and `predictions.json` is a field, and comes back as it was."""
    written = to_json(gather(quiet))
    read = from_json(Evidence, json.loads(json.dumps(written)), "evidence.json")
    assert to_json(read) == written
    write_json(tmp_path / "predictions.json", to_json(predictions_of(quiet)))
    assert to_json(StudyRecords(tmp_path).document("predictions", Predictions)) == to_json(
        predictions_of(quiet)
    )


@pytest.mark.parametrize("document", [Evidence, Predictions, ProtocolSummary])
def test_every_key_of_a_document_has_a_meaning(document):
    def check(schema):
        for name, entry in schema.items():
            assert entry["description"], name
            check(entry.get("keys", {}))

    check(schema_of(document))


@pytest.mark.parametrize(
    ("exponent", "known"),
    [
        ((0.35, 0.30, 0.40), True),
        ((0.35, 0.0, 0.40), False),
        ((0.35, 0.36, 0.40), False),
        ((0.35, 0.1, 0.40), False),
        # A table of one token budget: the exponent is left at 0, and the warning of the fit begins
        # with other words than its name.
        ((0.0, 0.0, 0.0), False),
    ],
)
def test_what_data_do_is_known_by_the_interval_of_their_exponent(exponent, known):
    estimate, low, high = exponent
    law = LawRecord("chinchilla", {"b": estimate}, interval={"b": (low, high)})
    assert data_identified(law) is known
    assert not data_identified(dataclasses.replace(law, unidentified=["b"]))
    assert data_identified(dataclasses.replace(law, unidentified=["a"]))


@pytest.mark.slow
def test_a_claim_about_data_that_nothing_tells_is_undecided(quiet):
    """No warning of the fit needs to begin with the exponent's name."""
    law = quiet.fits.loss_law
    silent = dataclasses.replace(
        law,
        unidentified=["b"],
        warnings=["nothing in this table tells b: what it multiplies is the same in every row"],
    )
    records = quiet.replaced(fits=dataclasses.replace(quiet.fits, loss_law=silent))
    barely = [row for row in claims(records).claims if "barely" in row.claim]
    assert [row.answer for row in barely] == ["undecided", "undecided"]
    assert all("not identified" in row.quantity for row in barely)
