"""Charts of the evidence: of answers as small as they come, with holes where records have them."""

import math
from types import SimpleNamespace

import pytest
from evidence_records import model, records
from report_page import assert_charts

from sdsl_jax.evidence import Evidence
from sdsl_jax.evidence.common import Estimate
from sdsl_jax.evidence.conditions import ConditionPair
from sdsl_jax.evidence.kinds import KindResult
from sdsl_jax.evidence.objectives import ObjectiveResult
from sdsl_jax.evidence.same_data import OtherPair, OwnPair
from sdsl_jax.report.condition_charts import conditions_charts
from sdsl_jax.report.evidence_charts import evidence_charts

UNKNOWN = Estimate(0.8, math.nan, math.nan)
MODELS = [
    model("draft-a", 1000, 2.2),
    model("draft-b", 4000, 2.0),
    model("target", 10**6, 1.5, "target"),
]


def study(**answers):
    return records(models=MODELS, evidence=Evidence(**answers))


def datasets(charts):
    return {chart.name: chart.spec["datasets"] for chart in charts}


def test_a_study_without_evidence_has_no_charts():
    assert not any(evidence_charts(study()).values())


def test_what_was_held_out_is_shown_with_its_prediction():
    loss = SimpleNamespace(
        params=10**6, model_id="target", measured=1.5, loss=1.6, low=1.4, high=1.7, extrapolation=2
    )
    pair = SimpleNamespace(
        draft_id="draft-a", target_id="target", measured=0.7, alpha=0.75, low=0.6, high=0.8
    )
    kinds = [(True, False), (False, True), (True, True)]
    pairs = [
        SimpleNamespace(**vars(pair), draft_held_out=draft, target_held_out=target)
        for draft, target in kinds
    ]
    ways = {
        "predicted": SimpleNamespace(draft_id="draft-a", lookahead=4, speedup=1.5, regret=0.1),
        "plain decoding": SimpleNamespace(draft_id=None, lookahead=None, speedup=1.0, regret=0.4),
    }
    choice = SimpleNamespace(
        target="target",
        strategies=ways,
        best_measured=SimpleNamespace(draft_id="draft-b", lookahead=3, speedup=1.7),
    )
    held = SimpleNamespace(
        losses=[loss],
        pairs=pairs,
        confidence=0.9,
        best_law="logit_gap",
        alpha_by_law={"logit_gap": SimpleNamespace(mae=0.01)},
        choice=choice,
    )
    drawn = evidence_charts(study(holdout=held))
    assert_charts(drawn)
    shown = datasets(drawn["holdout"])
    assert shown["holdout-losses"]["losses"][0]["predicted"] == 1.6
    assert [row["series"] for row in shown["holdout-acceptance"]["pairs"]] == [
        "held-out draft",
        "held-out target",
        "both held out",
    ]
    assert [row["lost"] for row in shown["holdout-choices"]["choices"]] == [0.1, 0.4]


def test_conditions_of_the_largest_target():
    temperature = SimpleNamespace(
        estimator="teacher_forced_text",
        by_temperature=[SimpleNamespace(temperature=t) for t in (0.5, 1.0)],
        pairs=[ConditionPair("draft-a", "target", 0.7, [0.8, 0.7])],
    )
    domain = SimpleNamespace(
        estimator="teacher_forced_text",
        by_domain=[SimpleNamespace(domain=d) for d in ("base", "far")],
        pairs=[ConditionPair("draft-a", "target", [0.7, 0.9], [0.8, 0.6])],
    )
    other = OtherPair("other", "target", 2.1, 0.6, 0.65, -0.05, -0.08, -0.01, False)
    same = SimpleNamespace(own=[OwnPair("draft-a", "target", 2.2, 0.62)], pairs=[other])
    evidence = Evidence(temperature=temperature, domain=domain, same_data=same)
    charts = list(conditions_charts(evidence, study()))
    assert_charts({"conditions": charts})
    shown = datasets(charts)
    assert [row["alpha"] for row in shown["conditions-temperature"]["pairs"]] == [0.8, 0.7]
    assert [row["gap"] for row in shown["conditions-text"]["pairs"]] == [0.7, 0.9]
    (row,) = shown["conditions-training-text"]["other"]
    # The other draft's α less the ends of the interval of the difference.
    assert row["same_data_low"] == pytest.approx(0.6 - -0.01)
    assert row["same_data_high"] == pytest.approx(0.6 - -0.08)


def test_objectives_and_kinds():
    results = [
        ObjectiveResult(o, n, d, 1, UNKNOWN, UNKNOWN, 2.0, UNKNOWN, UNKNOWN, UNKNOWN)
        for o in ("ce", "tv")
        for n in (1000, 4000)
        for d in (10**5, 10**6)
    ]
    objectives = SimpleNamespace(results=results, laws=[], middle_params=1100.0, confidence=0.9)
    kind = KindResult(
        "head",
        "tv",
        1000,
        1,
        10**6,
        1,
        UNKNOWN,
        UNKNOWN,
        0.1,
        3,
        UNKNOWN,
        UNKNOWN,
        0,
        UNKNOWN,
        1e9,
        {},
    )
    kinds = SimpleNamespace(results=[kind], target_params=10**6, confidence=0.9)
    drawn = evidence_charts(study(objectives=objectives, kinds=kinds))
    assert_charts(drawn)
    shown = datasets(drawn["objectives"])
    assert {row["train_tokens"] for row in shown["objectives-size"]["drafts"]} == {10**6}
    assert {row["draft_params"] for row in shown["objectives-budget"]["drafts"]} == {1000}
    assert [chart.name for chart in drawn["kinds"]] == ["kinds-speedup", "kinds-clock-speedup"]
