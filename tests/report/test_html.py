"""The report as a reader and a screen reader find it."""

import re

import pytest
from report_page import Page, assert_readable, without_scripts

from sdsl_jax.report.html import environment
from sdsl_jax.report.warnings import fit_warnings, marked, optima_warnings, said_once

SPEECH = "speculation does not pay"
EDGE = "S still rises at the edge of the sizes considered"


class Entry:
    def __init__(self, target, law, costs, *warnings):
        self.target_id, self.acceptance_law, self.cost_model = target, law, costs
        self.warnings = list(warnings)


def render(body: str, **values) -> str:
    names = "group, heading, interval, marks, picture, row, table, warnings"
    source = f'{{% from "macros.html.j2" import {names} with context %}}\n{body}'
    return environment().from_string(source).render(**values)


def test_a_table_has_heads_and_a_box_that_scrolls():
    body = (
        '{% call table("Sizes", ["draft", "S"], words=1) %}{{ group("a & b", 2) }}'
        '{{ row(["<i>", interval(1, 2)]) }}{% endcall %}'
    )
    text = render(body)
    page = Page(text)
    assert_readable(page)
    assert 'class="scroll" role="region" aria-label="Sizes" tabindex="0"' in text
    assert "a &amp; b" in text
    assert "&lt;i&gt;" in text
    assert '<td><span class="range">[1, 2]</span></td>' in text


def test_headings_make_the_contents():
    page = render('{{ heading(2, "A & b") }}{{ heading(3, "Does α hold?") }}{{ heading(2, "C") }}')
    outline = environment().filters["outline"](page)
    assert outline == [("a-b", "A &amp; b", [("does-hold", "Does α hold?")]), ("c", "C", [])]
    assert Page(page).ids == ["a-b", "does-hold", "c"]


def test_numbers_are_written_alike():
    filters = environment().filters
    assert filters["number"](-0.25) == "−0.250"
    assert filters["number"](2e-15, 1) == "2e−15"
    assert filters["percent"](-0.012) == "−1.2%"
    assert filters["fixed"](float("nan")) == "–"


def test_a_warning_is_said_once_with_its_rows():
    entries = [
        Entry(target, law, costs, *([SPEECH] if costs == "measured" else []), *edge)
        for target in ("small", "large")
        for law in ("logit_gap", "affine_plane")
        for costs in ("flops", "measured")
        for edge in ([EDGE] if (target, law, costs) == ("large", "logit_gap", "flops") else [],)
    ]
    said = optima_warnings(entries)
    assert said == [
        (SPEECH, ["all targets at measured costs"]),
        (EDGE, ["large at FLOP costs (logit in the loss gap)"]),
    ]
    by_law = marked(entries)
    assert list(by_law) == ["logit_gap", "affine_plane"]
    assert [numbers for _, numbers in by_law["logit_gap"]] == [[], [1], [2], [1]]
    for entry in entries:
        entry.warnings = [SPEECH]
    assert optima_warnings(entries) == [(SPEECH, ["every row"])]
    text = render("{{ warnings(said) }}{{ marks([1, 2]) }}", said=said)
    assert text.count("peculation does not pay") == 1
    page = Page(text)
    assert page.links == ["#warning-a", "#warning-b"]
    assert page.ids == ["warning-a", "warning-b"]


def test_warnings_of_laws_are_said_once():
    class Fit:
        def __init__(self, law, *warnings):
            self.law, self.warnings = law, list(warnings)

    fits = [Fit("chinchilla", "a is open", "A is open"), Fit("logit_gap", "few"), Fit("x", "few")]
    assert fit_warnings(fits) == [
        ("chinchilla", ["a is open", "A is open"]),
        ("logit in the loss gap, x", ["few"]),
    ]
    assert said_once([]) == []


@pytest.mark.slow
def test_the_page_of_a_study(tiny_study):
    """Anchors lead somewhere, tables read alone, and the main one fits into 1,280 pixels."""
    text = (tiny_study / "report.html").read_text()
    page = Page(text)
    assert_readable(page)
    assert len(page.links) > 8
    heads = [[cell[2] for cell in table[0]] for table in page.tables]
    assert "speed-up S" in heads[0]
    warnings = re.findall(r'<p class="note warning">(.*?)</p>|<li id="warning-.">(.*?)</li>', text)
    assert len(warnings) == len({*warnings})
    assert "http" not in re.sub(r"base64,[^\"]*", "", without_scripts(text))
