"""What fits.json and `sdsl fit --json` hold, and that one reader gives it back."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from sdsl_jax.errors import SdslError
from sdsl_jax.fitting.fits import fit_acceptance, fit_loss
from sdsl_jax.fitting.law_files import Fits, LawRecord, load_law, read_fits, read_law
from sdsl_jax.records.documents import schema_of, to_json
from sdsl_jax.theory import ChinchillaLaw, LogitPlane, ModelPoint, coefficients

TRUTH = ChinchillaLaw(E=1.2, A=12.0, B=60.0, a=0.35, b=0.4)
QUICK = {"starts": 8, "bootstrap": 20}
# Keys of a law in the JSON; the intervals carry their confidence.
KEYS = [
    "law",
    "coefficients",
    "standard_error",
    "interval_90",
    "interval_basis",
    "profile_interval_90",
    "covariance",
    "objective",
    "n",
    "huber_delta",
    "starts",
    "starts_agreeing",
    "draws_cut_off",
    "condition_number",
    "rmse",
    "left_out_rmse",
    "residual_unit",
    "prediction_error",
    "warnings",
    "unidentified",
    "draws",
    "params_count",
    "valid",
]


def table() -> pd.DataFrame:
    random = np.random.default_rng(0)
    sizes, tokens = np.geomspace(1e3, 3e5, 6).repeat(5), np.tile(np.geomspace(1e5, 2e7, 5), 6)
    loss = np.asarray(TRUTH(sizes, tokens)) * np.exp(0.003 * random.normal(size=30))
    return pd.DataFrame({"n": sizes, "d": tokens, "nll": loss})


@pytest.fixture(scope="module")
def fitted():
    columns = {"params_column": "n", "tokens_column": "d", "loss_column": "nll"}
    return fit_loss(table(), **columns, **QUICK)


def test_the_schema_of_fits():
    """A change here changes a format that others read."""
    schema = schema_of(Fits)
    assert list(schema) == ["loss_law", "acceptance_laws", "hardware", "shape_rule"]
    law = schema["loss_law"]["keys"]
    renamed = {"interval": "interval_90", "profile_interval": "profile_interval_90"}
    assert [
        renamed.get(k, k) for k in law if k != "confidence" and renamed.get(k, k) in KEYS
    ] == KEYS
    extra = {
        "confidence",
        "r_squared",
        "text",
        "split",
        "excluded_for_epochs",
        "excluded_for_recipe",
        "residuals",
        "estimator",
        "discrepancy",
    }
    assert set(law) - extra == {k.removesuffix("_90") if "interval_90" in k else k for k in KEYS}
    assert all(entry["description"] for entry in law.values())
    assert "verify_seconds_by_lookahead" in schema["hardware"]["keys"]


def test_a_fit_of_a_frame_is_read_back(fitted, tmp_path):
    values = json.loads(json.dumps(fitted.to_json(), allow_nan=False))
    assert list(values) == KEYS
    again = read_law(values, "law.json")
    assert again.to_json() == values
    assert again.confidence == 0.9
    path = tmp_path / "law.json"
    path.write_text(json.dumps(values))
    loaded = load_law(path)
    assert coefficients(loaded.law) == fitted.record.coefficients
    assert len(loaded.draws.E) == 20
    assert "LoadedLaw(" in repr(loaded)


def test_what_a_fit_leads_with(fitted):
    """The law is known far better than its scale A: clean data raise no alarm about A."""
    error = fitted.record.prediction_error
    assert 0 < error.inside <= error.inside_worst < 0.1
    assert error.inside < error.extrapolated_10x < 0.1
    assert fitted.record.accuracy()[0].startswith(
        "If the form of the law holds, predictions of L(N, D) inside the table are good to ±"
    )
    assert "A" not in fitted.record.unidentified
    assert fitted.record.standard_error["A"] < fitted.record.coefficients["A"]
    assert repr(fitted).startswith("LawFit(chinchilla: E=")
    assert "<table>" in fitted._repr_html_()


def test_rows_as_dictionaries_are_a_table(fitted):
    rows = table().rename(
        columns={"n": "params_nonembedding", "d": "train_tokens", "nll": "loss_nats"}
    )
    again = fit_loss(rows.to_dict("records"), **QUICK)
    assert again.record.coefficients == fitted.record.coefficients
    with pytest.raises(SdslError, match="the table lacks the columns params_nonembedding"):
        fit_loss(table())
    with pytest.raises(SdslError, match="the table holds no rows"):
        fit_loss([])


@pytest.mark.slow
def test_acceptance_laws_of_a_frame():
    random = np.random.default_rng(1)
    sizes = np.geomspace(1e3, 1e5, 5)
    rows = [
        {
            "draft_params": n,
            "draft_loss": 3.5 - 0.2 * i,
            "target_params": m,
            "target_loss": 2.4 - 0.1 * j,
        }
        for i, n in enumerate(sizes)
        for j, m in enumerate((3e5, 1e6, 3e6))
    ]
    law = LogitPlane(1.9, 2.1, 1.4)
    for row in rows:
        points = (ModelPoint(row[f"{r}_params"], row[f"{r}_loss"]) for r in ("draft", "target"))
        row["alpha"] = float(law(*points)) + 0.002 * random.normal()
    fits = fit_acceptance(pd.DataFrame(rows), **QUICK)
    assert fits["logit_plane"].law.draft_slope == pytest.approx(2.1, rel=0.1)
    assert fits.law is fits.fits[0].law
    assert [entry["law"] for entry in fits.to_json()["acceptance_laws"]] == [
        f.record.law for f in fits
    ]
    assert "left-out drafts" in repr(fits)
    assert "<table>" in fits._repr_html_()


def test_a_file_of_several_laws_is_asked_for_one(fitted, tmp_path):
    gap = LawRecord("logit_gap", {"level": 1.0, "slope": 1.5})
    path = tmp_path / "fits.json"
    path.write_text(json.dumps({"loss_law": fitted.to_json(), "acceptance_laws": [gap.to_json()]}))
    with pytest.raises(
        SdslError, match=r"holds several laws; ask for one of them, such as .*#logit_gap"
    ):
        load_law(str(path))
    assert load_law(f"{path}#logit_gap").law.slope == 1.5
    assert fitted.record.coefficients["E"] == load_law(f"{path}#chinchilla").law.E
    assert load_law("besiroglu").draws is None
    with pytest.raises(SdslError, match="foo is no law; it must be one of besiroglu"):
        load_law("foo")


def test_a_study_of_older_days_still_reads(fitted):
    """Without the keys that came later."""
    law = fitted.to_json()
    for key in ("prediction_error", "unidentified", "draws_cut_off"):
        del law[key]
    device = {"coefficients": {}, "precision": {}, "batch": 1, "context": 64}
    fits = read_fits(
        {"loss_law": law, "acceptance_laws": [law], "hardware": device, "shape_rule": {}}
    )
    assert fits.loss_law.prediction_error is None
    assert dataclasses.replace(fits.loss_law, draws_cut_off=0.0).interval["E"][0] > 0
    assert to_json(fits)["hardware"]["batch"] == 1
    with pytest.raises(SdslError, match=r"fits\.json is damaged: it lacks the key hardware"):
        read_fits({"loss_law": law, "acceptance_laws": [law]})
