"""The interactive charts of a report: what they show is what the records hold."""

import json
import re
import shutil

import pytest
from report_page import Page, assert_charts

from sdsl_jax.evidence import StudyRecords
from sdsl_jax.report.chart_parts import (
    Axis,
    Series,
    bars,
    cells,
    chart,
    curves,
    edges,
    equality,
    level,
    points,
    rounded,
    shade,
    stars,
    surface,
    tips,
)
from sdsl_jax.report.charts import charts_of
from sdsl_jax.report.figure_data import distinct
from sdsl_jax.report.html import environment, write_report

EVIL = '</script><img src="x" onerror="alert(1)"><!--'


def small_chart(name="small", draft="draft-1"):
    """A chart of every kind of layer."""
    x, y = Axis("draft size (parameters)", log=True, counts=True), Axis("α (probability)")
    place, series = (x.of("size"), y.of("alpha")), Series("target", ["a", "b"])
    told = tips(draft_id="draft", alpha="α|.3f")
    row = {"series": "a", "draft_id": draft, "size": 1e4, "alpha": 0.8}
    row |= {"alpha_low": 0.7, "alpha_high": float("nan")}
    other = row | {"series": "b", "size": 3e4}
    # The axes of `cells` have the names of theirs.
    return chart(
        name,
        "A title",
        "What it shows.",
        {"pairs": [row, other], "map": cells([1e4, 2e4, 4e4], [0.5, 0.9], _Grid(), "alpha", True)},
        [
            surface("map", x, y, shade("alpha", "α", (0.0, 1.0), middle=0.5), tooltip=told[1:]),
            level(y, 0.5, "half"),
            equality(x, y, (0.1, 1.0)),
            curves("pairs", *place, series, told),
            bars("pairs", *place, "alpha", series),
            points("pairs", *place, told, series, toggles=True),
            points("pairs", *place, told, hollow=True),
            stars("pairs", *place, told, series),
        ],
    )


class _Grid:
    """Values of a map that tell where they are from."""

    def __getitem__(self, at):
        return at[0] + 10 * at[1]


def test_a_chart_of_every_layer_compiles():
    assert_charts({"figure": [small_chart()]})


def test_text_of_users_cannot_leave_its_script():
    source = (
        '{% from "macros.html.j2" import picture with context %}{{ picture("f", "A caption.") }}'
    )
    shown = {"f": [small_chart(draft=EVIL)]}
    text = environment().from_string(source).render(charts=shown, images={})
    page = Page(text)
    assert page.images == []
    assert text.count("</script") == len(shown["f"])
    assert page.ids == ["figure-f", "chart-small"]
    (spec,) = re.findall(r'<script type="application/json">(.*?)</script>', text, re.DOTALL)
    row = json.loads(spec)["datasets"]["pairs"][0]
    assert row["draft_id"] == EVIL
    assert row["alpha_high"] is None


def test_a_picture_is_shown_where_scripts_do_not_run():
    source = (
        '{% from "macros.html.j2" import picture with context %}{{ picture("f", "A caption.") }}'
    )
    template = environment().from_string(source)
    alone = template.render(charts={}, images={"f": "AAAA"})
    assert "<noscript>" not in alone
    both = template.render(charts={"f": [small_chart()]}, images={"f": "AAAA"})
    (hidden,) = re.findall("<noscript>(.*?)</noscript>", both, re.DOTALL)
    for text in (alone, hidden):
        assert Page(text).images == ["A caption"]


def test_cells_lie_side_by_side():
    assert edges([1.0, 3.0, 4.0]) == [1.0, 2.0, 3.5, 4.0]
    assert edges([1.0, 4.0, 16.0], log=True) == pytest.approx([1.0, 2.0, 8.0, 16.0])
    made = cells([1.0, 3.0], [0.0, 2.0], _Grid(), "value")
    assert [(c["x"], c["x2"], c["y"], c["y2"], c["value"]) for c in made] == [
        (1.0, 2.0, 0.0, 1.0, 0.0),
        (1.0, 2.0, 1.0, 2.0, 10.0),
        (2.0, 3.0, 0.0, 1.0, 1.0),
        (2.0, 3.0, 1.0, 2.0, 11.0),
    ]


def test_names_tell_series_apart():
    assert distinct(["1k", "1k", "2k"], [1000, 1001, 2000]) == ["1k (1,000)", "1k (1,001)", "2k"]


def test_numbers_have_seven_digits():
    row = rounded({"a": 1 / 3, "b": 123456789, "c": "text", "d": float("inf")})
    assert row == {"a": 0.3333333, "b": 123456789, "c": "text", "d": float("inf")}


@pytest.mark.slow
def test_charts_show_what_the_records_hold(tiny_study):
    records = StudyRecords(tiny_study)
    drawn = charts_of(records)
    assert_charts(drawn)
    panels = {chart.name: chart.spec["datasets"] for charts in drawn.values() for chart in charts}
    loss = panels["loss-by-size"]
    assert {
        (row["model_id"], row["params_nonembedding"], row["train_tokens"])
        for row in loss["models"] + loss["targets"]
    } == {(m.model_id, m.params_nonembedding, m.train_tokens) for m in records.models}
    by_id = records.models_by_id
    for row in loss["models"]:
        model = by_id[row["model_id"]]
        for column in ("loss_nats", "loss_nats_low", "loss_nats_high"):
            assert row[column] == pytest.approx(getattr(model, column), rel=1e-6)
    estimator = records.fits.acceptance_laws[0].estimator
    measured = {pair: r.alpha for pair, r in records.measured(estimator).items()}
    for rows in (panels["acceptance-gap"]["pairs"], panels["predicted-logit-gap"]["exact"]):
        found = {(row["draft_id"], row["target_id"]): row["alpha"] for row in rows}
        assert found == pytest.approx(measured, rel=1e-6)
    fitted = {(r.model_id, r.width): r.predicted_seconds for r in records.fits.hardware.rows}
    for row in panels["latency-verify"]["passes"]:
        seconds = 1e-6 * row["fitted_microseconds"]
        assert seconds == pytest.approx(fitted[row["model_id"], row["width"]], rel=1e-6)
    trained = {
        (entry.cost_model, entry.target_id, row.draft_id, row.lookahead): row.speedup
        for entry in records.codesign
        for row in entry.trained
    }
    for cost_model in ("flops", "measured"):
        rows = panels[f"speedup-{cost_model}"]["trained drafts"]
        assert rows
        for row in rows:
            known = trained[cost_model, row["target_id"], row["draft_id"], row["lookahead"]]
            assert row["speedup"] == pytest.approx(known, rel=1e-6)


@pytest.mark.slow
def test_the_same_records_give_the_same_page(tiny_study, tmp_path):
    folder = shutil.copytree(tiny_study, tmp_path / "study")
    pages = []
    for _ in range(2):
        write_report(StudyRecords(folder), "", {}, {})
        pages.append((folder / "report.html").read_bytes())
    assert pages[0] == pages[1]
    text = pages[0].decode()
    assert text.count('<figure class="chart"') == len(
        [chart for charts in charts_of(StudyRecords(folder)).values() for chart in charts]
    )
    assert "window.vegaEmbed" in text
