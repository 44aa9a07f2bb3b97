"""Drafts that propose only the most frequent ids: a setting of a study."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import tiny

from sdsl_jax.checkpoints.loading import load_recorded
from sdsl_jax.data import load_dataset
from sdsl_jax.errors import SdslError
from sdsl_jax.evidence import Evidence
from sdsl_jax.fitting.fits import fit_acceptance, fit_loss
from sdsl_jax.models import forward
from sdsl_jax.progress import Silent
from sdsl_jax.study import STAGES, run_study
from sdsl_jax.training import plan_rungs, train_rungs
from sdsl_jax.training.ladder import check_ladder


class Notes(Silent):
    """Keeps what is said."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


@pytest.fixture(scope="module")
def dataset():
    return load_dataset(tiny().data)


def test_the_most_frequent_ids(dataset):
    """By their number in the training split, ties by id, and always with the end of a document."""
    train = dataset.splits["train"][:]
    often = np.bincount(train, minlength=256)
    ids = dataset.frequent_ids(40)
    assert ids == tuple(sorted(ids))
    assert 0 in ids
    others = [i for i in range(256) if i not in ids]
    rank = lambda i: (-often[i], i)  # noqa: E731
    assert max(rank(i) for i in ids if i) < min(map(rank, others))
    for wrong in (1, 256):
        with pytest.raises(
            SdslError, match="the vocabulary has 256; it must be more than the 1 that"
        ):
            dataset.frequent_ids(wrong)


def test_every_draft_is_trained_once_for_each_readout(dataset, tmp_path):
    """Targets have all ids; rungs of all ids keep their folders, and the others have their own."""
    config = tiny(family={"readout": [0, 40, 24]})
    plans = plan_rungs(config, dataset, tmp_path)
    plain = plan_rungs(tiny(), dataset, tmp_path)
    assert {p.folder for p in plain} == {p.folder for p in plans if not p.rung.readout}
    assert len({p.folder for p in plans}) == len(plans) == 3 * 3 + 1
    for plan in plans:
        ids = plan.model.readout_ids
        assert len(ids) == plan.rung.readout
        assert plan.model.truncated == bool(ids)
        if ids:
            assert plan.rung.name == f"draft-{plan.rung.name.split('-')[1]}-{len(ids)}ids-s0"
            assert ids == dataset.frequent_ids(len(ids))
            same = dataclasses.replace(plan.model, readout_ids=(), truncated=False)
            assert same in [p.model for p in plain]
    check_ladder(config)
    check_ladder(tiny(family={"readout": [24]}))
    with pytest.raises(SdslError, match="only drafts with tables of their own can be truncated"):
        tiny(family={"readout": [24]}, distil={"cut": "nested"})


@pytest.mark.slow
def test_a_study_measures_readouts_side_by_side(tmp_path):
    """Laws are fitted to the drafts of all ids alone; the others are measured, compared and refused in a
    common law. α is at most the target's probability of the K ids, position by position."""
    config = tiny(family={"readout": [0, 40]}, codesign={"starts": 2, "steps": 50})
    records = run_study(config, tmp_path)
    drafts = [m for m in records.trained if m.role == "draft"]
    assert {(m.readout, m.trained_for) for m in drafts} == {(0, "text"), (40, "text of 40 ids")}
    assert {m.readout for m in records.models} == {0}
    shown = records.document("evidence", Evidence).kinds
    assert {r.objective for r in shown.results} == {"text", "text of 40 ids"}
    cost = {(r.draft_params, r.objective): r.cost for r in shown.results}
    for (size, objective), value in cost.items():
        assert objective == "text" or value < cost[size, "text"]
    with pytest.raises(SdslError, match="different objectives: text, text of 40 ids"):
        fit_loss(tmp_path / "records" / "models.csv")
    fitted = fit_acceptance(
        tmp_path / "records", objective="text of 40 ids", starts=2, bootstrap=20
    )
    assert len(fitted.fits) > 1

    loaded = {m.model_id: load_recorded(m, tmp_path) for m in records.trained}
    (target,) = (m for name, m in loaded.items() if name.startswith("target"))
    small = next(m for name, m in loaded.items() if name.startswith("draft-2.5k-16k-40ids"))
    ids = list(small.config.readout_ids)
    assert small.record.params_total - small.record.params_nonembedding == 41 * small.config.width
    assert set(ids) == set(load_dataset(config.data).frequent_ids(40))
    tokens = load_dataset(config.data).text("test").windows(8)[:, :-1]
    p, q = (
        np.asarray(jax.nn.softmax(forward(m.config, m.params, jnp.asarray(tokens))[0]), float)
        for m in (target, small)
    )
    assert (np.minimum(p, q).sum(-1) <= p[..., ids].sum(-1) + 1e-6).all()
    bounds = {r.draft_id: r for r in records.measured_acceptance if "text" in r.estimator}
    assert bounds[next(m.model_id for m in drafts if not m.readout)].alpha_bound == 1
    assert 0 < bounds[small.record.model_id].alpha < bounds[small.record.model_id].alpha_bound < 1

    # And training goes on from a draft of the same readout.
    distilled = tiny(
        family={"readout": [40]},
        ladder={"draft_params": [600], "draft_tokens": [4_000]},
        training={"learning_rate": 1e-3, "evaluation_windows": 8},
        distil={
            "teacher": str(target.folder),
            "init_from": str(tmp_path),
            "objective": "tv",
            "cache": str(tmp_path / "cache"),
        },
    )
    dataset = load_dataset(config.data)
    plans = [p for p in plan_rungs(distilled, dataset, tmp_path / "b") if p.rung.role == "draft"]
    (last,) = train_rungs(distilled, dataset, tmp_path / "b", plans).records
    assert last.model_id == "draft-600-4k-40ids-tv-s0"
    assert last.trained_for == "tv of 40 ids"
    assert last.parent_digest == loaded["draft-600-16k-40ids-s0"].record.params_digest


@pytest.mark.slow
def test_a_study_without_drafts_of_all_ids_has_no_laws(tmp_path):
    """Everything else is measured and reported, and nothing is done twice."""
    config = tiny(
        family={"readout": [24, 40]},
        ladder={"draft_tokens": [4_000]},
        measure={"decode": "none", "lookaheads": [1]},
        race={"drafts": ["*-40ids-*"], "lookaheads": [1], "choosing_prompts": 2, "prompts": 4},
    )
    notes = Notes()
    records = run_study(config, tmp_path, progress=notes)
    passed_over = [n.split(":")[0] for n in notes.notes if "passed over, for the study has no" in n]
    assert passed_over == ["fit", "codesign", "figures"]
    assert not records.has_fits
    evidence = records.document("evidence", Evidence)
    assert {o.readout for o in evidence.readouts.optima} == {24, 40}
    assert [r.prompts for r in evidence.race.results] == [4]
    page = (tmp_path / "report.html").read_text()
    for heading in ("The race", "How many ids should a draft propose?", "Models"):
        assert f">{heading}</h" in page
    assert "Fitted laws" not in page
    again = Notes()
    run_study(config, tmp_path, progress=again)
    assert sum("up to date" in note for note in again.notes) == len(STAGES) - 3
