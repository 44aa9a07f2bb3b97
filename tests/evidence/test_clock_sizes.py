"""The best draft size on the clock, from records whose costs and acceptances are known."""

import dataclasses
import itertools
import json

import numpy as np
import pytest
import scipy.optimize
from evidence_records import BASE, config, evidence_section, model, records
from report_page import Page, assert_charts, assert_readable

from sdsl_jax.evidence import Evidence
from sdsl_jax.evidence.clock_sizes import _costs_of_sizes, _straight, clock_sizes
from sdsl_jax.fitting.law_files import read_fits
from sdsl_jax.records import ExpectedRecord, RunRecord
from sdsl_jax.records.documents import from_json, to_json
from sdsl_jax.report.clock_sizes_figure import draw_clock_sizes
from sdsl_jax.report.evidence_charts import evidence_charts
from sdsl_jax.theory import tokens_per_round

DRAFTS = (1_000, 4_000, 16_000, 64_000, 256_000, 1_024_000)
TARGETS = (100_000, 300_000, 1_000_000, 3_000_000)
SCALE, EXPONENT = 8.0, 0.3
LOOKAHEADS = (1, 2, 4, 8)
# A step takes a fixed time and one that grows with the size; a verify pass 1.6 of it.
FIXED, VERIFY = 50_000.0, 1.6


def alpha(size):
    """1 − α falls by a power of N."""
    return 1 - SCALE * np.asarray(size, float) ** -EXPONENT


def step(size: float) -> float:
    return FIXED + size


def cost(size, target: int, lookahead, clock: bool):
    if clock:
        return (lookahead * step(size) + VERIFY * step(target)) / step(target)
    return 1 + lookahead * size / target


def study(noise: float = 0.0, laws: bool = True, targets=TARGETS, slow: float = 1.0):
    """Every draft timed with every target; in the last repetition the machine is `slow`."""
    random = np.random.default_rng(0)
    drafts = [model(f"draft-{n}", n) for n in DRAFTS]
    of_size = [model(f"target-{m}", m, 1.5, "target") for m in targets]
    runs, expected = [], []
    for block, (target, draft) in enumerate(itertools.product(of_size, drafts)):
        m, n = target.params_nonembedding, draft.params_nonembedding
        for repetition in range(6):

            def run(
                draft_id: str, lookahead: int, seconds: float, block=block, r=repetition, t=target
            ):
                took = seconds * np.exp(noise * random.normal()) * (slow if r == 5 else 1.0)
                runs.append(
                    RunRecord(
                        draft_id, t.model_id, lookahead, 1, block, r, 10 * took, 10, 20, 64, 1.0
                    )
                )

            run("", 0, step(m))
            for lookahead in LOOKAHEADS:
                run(draft.model_id, lookahead, cost(n, m, lookahead, True) * step(m))
        for lookahead in range(1, 17):
            tau = float(tokens_per_round(alpha(n), float(lookahead)))
            row = ExpectedRecord(draft.model_id, target.model_id, lookahead, 1.0, BASE, tau)
            expected.append(
                dataclasses.replace(
                    row,
                    tokens_per_round_low=tau * 0.99,
                    tokens_per_round_high=tau * 1.01,
                    confidence=0.9,
                    samples=64,
                    round_cost=float(cost(n, m, lookahead, False)),
                )
            )
    power = {"scale": SCALE, "exponent": EXPONENT, "target_exponent": 0.0}
    chinchilla = {"E": 1.0, "A": 1.0, "B": 1.0, "a": 0.1, "b": 0.1}
    fits = {
        "loss_law": {
            "law": "chinchilla",
            "coefficients": chinchilla,
            "draws": {k: [v] * 20 for k, v in chinchilla.items()},
        },
        "acceptance_laws": [
            {
                "law": "power_law",
                "coefficients": power,
                "draws": {k: [v] * 20 for k, v in power.items()},
            }
        ],
        "hardware": {
            "coefficients": {"pass_seconds": 1.0, "layer_seconds": 1.0, "token_seconds": 1.0}
            | {"bytes_per_second": 1.0, "flops_per_second": 1.0},
            "precision": {"weight_bytes": 4.0, "cache_bytes": 4.0},
            "batch": 1,
            "context": 64,
            "verify_seconds_by_lookahead": {},
            "decode_seconds": {},
        },
        "shape_rule": {"aspect_ratio": 32.0, "vocab_size": 256.0, "context": 64.0},
    }
    tables = {"fits": read_fits(fits)} if laws else {}
    made = records(
        config=config(),
        models=[*drafts, *of_size],
        expected=expected,
        runs=runs,
        **tables,
    )
    assert made.has_fits == laws
    return made


@pytest.fixture(scope="module")
def found():
    return clock_sizes(study())


def optimum(target: int, clock: bool):
    """N*, γ* and S* by brute force over a fine grid."""
    sizes = np.geomspace(DRAFTS[0], max(n for n in DRAFTS if n < target), 4001)
    lookaheads = np.arange(1, (8 if clock else 16) + 1)
    tau = np.asarray(tokens_per_round(alpha(sizes)[:, None], lookaheads.astype(float)))
    speedups = tau / cost(sizes[:, None], target, lookaheads, clock)
    i, g = np.unravel_index(speedups.argmax(), speedups.shape)
    return sizes, speedups.max(axis=1), (sizes[i], lookaheads[g], speedups[i, g])


@pytest.mark.parametrize("where", ["clock", "flops"])
def test_optima_are_those_of_brute_force(found, where):
    """The grid has a ratio of 1.022 between sizes; costs that are linear in N and γ are exact on straight lines."""
    assert [t.target_params for t in found.targets] == list(TARGETS)
    for target in found.targets:
        best = getattr(target, where)
        sizes, curve, (size, lookahead, speedup) = optimum(target.target_params, where == "clock")
        assert best.speedup.estimate == pytest.approx(speedup, rel=1e-4)
        assert best.draft_params.estimate == pytest.approx(size, rel=0.04)
        assert best.ratio.estimate == pytest.approx(
            target.target_params / best.draft_params.estimate
        )
        assert best.lookahead.estimate == lookahead
        for share, ends in ((0.01, best.within_1pct), (0.05, best.within_5pct)):
            good = sizes[curve >= (1 - share) * speedup]
            assert ends == pytest.approx((good[0], good[-1]), rel=0.04)
        assert best.pays == ("yes" if speedup > 1 else "no")
        assert np.interp(best.draft_params.estimate, best.sizes, best.speedups) == pytest.approx(
            speedup, rel=1e-4
        )


def test_measured_drafts_are_tokens_over_costs(found):
    for target in found.targets:
        for draft in target.drafts:
            for where, most in (("clock", 8), ("flops", 16)):
                lookaheads = np.arange(1, most + 1)
                tau = np.asarray(
                    tokens_per_round(alpha(draft.draft_params), lookaheads.astype(float))
                )
                each = tau / cost(
                    draft.draft_params, target.target_params, lookaheads, where == "clock"
                )
                best = getattr(draft, where)
                assert best.lookahead == lookaheads[each.argmax()]
                assert best.speedup.estimate == pytest.approx(each.max(), rel=1e-9)
                # The interval of τ is 1% either way, at the same confidence.
                assert best.speedup.high / best.speedup.estimate == pytest.approx(1.01, abs=0.004)


def test_claims_follow_the_optima(found):
    """Slopes and ratios of the optima; on the clock a fixed cost of every step makes the best draft larger."""
    for where, title in (("clock", "on the clock"), ("flops", "in FLOPs")):
        kept = [t for t in found.targets if getattr(t, where).inside == 1.0]
        assert not any(any(getattr(t, where).open_ends(0.9)) for t in kept)
        m = np.log([t.target_params for t in kept])
        n = np.log([getattr(t, where).draft_params.estimate for t in kept])
        ratio, slope = (c for c in found.claims if c.claim.endswith(title))
        assert ratio.estimate == pytest.approx(np.exp((m - n).mean()))
        assert slope.estimate == pytest.approx(np.polyfit(m, n, 1)[0])
        assert slope.low <= slope.estimate <= slope.high
    for target in found.targets:
        assert target.clock.draft_params.estimate > target.flops.draft_params.estimate
    pays = [t.target_params for t in found.targets if t.clock.pays == "yes"]
    not_yet = [t.target_params for t in found.targets if t.clock.pays == "no"]
    assert max(not_yet) < found.pays_from.estimate < min(pays)


def test_a_repetition_in_which_everything_is_slow_changes_nothing(found):
    again = clock_sizes(study(slow=3.0))
    for one, other in zip(found.targets, again.targets):
        assert one.clock.speedup.estimate == pytest.approx(other.clock.speedup.estimate, rel=1e-12)


def test_without_laws_the_best_measured_draft_stands():
    found = clock_sizes(study(laws=False, targets=TARGETS[-1:]))
    (target,) = found.targets
    assert target.source == "measured"
    assert found.claims == []
    assert found.pays_from is None
    best = max(target.drafts, key=lambda d: d.clock.speedup.estimate)
    assert target.clock.draft_params.estimate == best.draft_params
    assert target.clock.speedup == best.clock.speedup
    low, high = target.clock.within_5pct
    enough = [
        d.draft_params
        for d in target.drafts
        if d.clock.speedup.estimate >= 0.95 * best.clock.speedup.estimate
    ]
    assert (low, high) == (min(enough), max(enough))


def test_nothing_is_said_where_nothing_was_timed():
    assert clock_sizes(study().replaced(runs=[], timed_runs=[])) is None
    assert clock_sizes(study().replaced(expected=[], measured_rounds=[])) is None


def test_no_draft_is_faster_for_being_larger():
    """The fit under bounds is scipy's, for measured costs that fall with the size and for others."""
    random = np.random.default_rng(0)
    trained = np.geomspace(1e3, 1e5, 6)
    costs = 1.5 * np.exp(0.3 * random.normal(size=(201, 6, 3)))
    fitted, _ = _costs_of_sizes(costs, trained, trained, np.random.default_rng(1))
    assert (np.diff(fitted, axis=1) >= -1e-9).all()
    relative = trained / trained.max()
    for draw in range(20):
        if draw == 0:
            weights = np.ones(6)
            drawn = np.random.default_rng(1).exponential(size=(200, 6))
        else:
            weights = drawn[draw - 1]
        slopes = np.stack([np.sqrt(relative), relative], axis=-1)
        x = np.concatenate(
            [
                np.broadcast_to(np.eye(3), (6, 3, 3)),
                np.arange(1, 4)[:, None] * slopes[:, None],
            ],
            axis=2,
        )
        rows = (np.sqrt(weights)[:, None, None] * x / costs[draw][..., None]).reshape(-1, 5)
        wanted = np.repeat(np.sqrt(weights), 3)
        bounds = [-np.inf] * 3 + [0.0] * 2, np.inf
        best = scipy.optimize.lsq_linear(rows, wanted, bounds, tol=1e-14)
        np.testing.assert_allclose(fitted[draw], x @ best.x, rtol=1e-5)


def test_straight_lines_pass_through_their_knots_and_go_on():
    knots = np.asarray([1.0, 2.0, 5.0])
    at = np.asarray([0.0, 1.0, 1.5, 2.0, 4.0, 5.0, 7.0])
    values = 3 - 2 * knots
    np.testing.assert_allclose(_straight(at, knots) @ values, 3 - 2 * at)
    np.testing.assert_allclose(_straight(at, knots[:1]) @ values[:1], values[0])


@pytest.mark.slow
def test_the_figure_and_the_section(found, tmp_path):
    written = json.loads(json.dumps(to_json(Evidence(clock_sizes=found))))
    evidence = from_json(Evidence, written, "the file")
    assert draw_clock_sizes(records(evidence=evidence), tmp_path, "clock_sizes")
    assert_charts(evidence_charts(records(evidence=evidence)))
    assert (tmp_path / "clock_sizes.png").stat().st_size > 10_000
    section = evidence_section(evidence, {"clock_sizes": "AAAA"})
    for text in ("How large the best draft is", "pays on the clock from a target of", "M/N*"):
        assert text in section
    assert_readable(Page(section))
    assert not draw_clock_sizes(records(evidence=Evidence()), tmp_path, "clock_sizes")
