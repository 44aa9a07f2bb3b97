"""The report in a browser: charts answer, tables sort and filter, everything downloads, nothing is asked of a network."""

import csv

import pytest

from sdsl_jax.evidence import StudyRecords

# The study is that of the slow tests.
pytestmark = pytest.mark.slow


@pytest.fixture
def report(tiny_study, tab):
    """Opens the report of a tiny study in a tab of a width, with all its charts drawn."""

    def opened(width=1280):
        shown = tab(width)
        shown.page.goto((tiny_study / "report.html").as_uri())
        shown.page.wait_for_function(
            """() => [...document.querySelectorAll("figure.chart")]
              .every((figure) => figure.dataset.state === "drawn")""",
            timeout=120_000,
        )
        return shown.page

    return opened


def downloaded(page, button):
    with page.expect_download() as waiting:
        button.click()
    return waiting.value.path().read_text("utf-8")


def test_points_name_their_models_and_charts_download(report, tiny_study, pictures):
    page, records = report(), StudyRecords(tiny_study)
    page.screenshot(path=f"{pictures}/report-1280.png", full_page=True)
    figure = page.locator("figure.chart").first
    assert page.locator("figure.chart").count() > 8
    rows = list(
        csv.DictReader(downloaded(page, figure.get_by_text("CSV", exact=True)).splitlines())
    )
    models = {m.model_id: m for m in records.models}
    shown = {row["model_id"]: float(row["loss_nats"]) for row in rows if row.get("model_id")}
    assert shown.keys() == models.keys()
    for name, loss in shown.items():
        assert loss == pytest.approx(models[name].loss_nats, rel=1e-5)
    assert downloaded(page, figure.get_by_text("SVG", exact=True)).startswith("<svg")
    # By keyboard: the arrow reaches a point, and the line below says which model it is.
    figure.locator(".plot").focus()
    page.keyboard.press("ArrowRight")
    said = figure.locator(".said").text_content()
    assert any(name in said for name in models), said


def test_legends_toggle(report):
    page = report()
    figure = page.locator("figure.chart").filter(has=page.locator("[aria-pressed]")).first
    entries = figure.locator("[aria-pressed]")
    first = entries.first
    first.focus()
    page.keyboard.press("Enter")
    page.wait_for_function(
        "(e) => e.getAttribute('aria-pressed') === 'true'", arg=first.element_handle()
    )
    pressed = [entry.get_attribute("aria-pressed") for entry in entries.all()]
    assert pressed.count("true") == 1


def test_tables_sort_filter_and_download(report):
    page = report()
    box = page.locator(".tabled").filter(has=page.locator("input[type=search]")).first
    heads, rows = box.locator("thead th"), box.locator("tbody tr:not(.group):not([hidden])")

    def first_cells():
        # A browser sorts as people do, without regard to capitals.
        return [row.locator("> *").first.text_content().casefold() for row in rows.all()]

    before = first_cells()
    for order, expected in (
        ("ascending", sorted(before)),
        ("descending", sorted(before, reverse=True)),
        ("none", before),
    ):
        heads.first.get_by_role("button").press("Enter")
        assert heads.first.get_attribute("aria-sort") == order
        if not box.locator("tr.group").count():
            assert first_cells() == expected
    word = rows.last.locator("> *").first.text_content().strip()
    box.locator("input[type=search]").fill(word)
    assert 0 < rows.count() < len(before)
    assert all(word in text for text in rows.all_text_contents())
    said = box.locator("[role=status]").text_content()
    assert said == f"{rows.count()} of {len(before)} rows"
    text = downloaded(page, box.locator("[data-download=csv]"))
    assert len(list(csv.reader(text.splitlines()))) == rows.count() + 1


@pytest.mark.parametrize("width", [400, 1600])
def test_the_report_fits(report, pictures, width):
    page = report(width)
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.screenshot(path=f"{pictures}/report-{width}.png", full_page=True)
