"""Views and pages: numbers of the library, and files that need nothing beside them."""

import itertools
import json
import re
import shlex
import shutil
import sys

import numpy as np
import pytest
import vl_convert

import sdsl_jax as sdsl
from sdsl_jax.cli.commands import run
from sdsl_jax.codesign.grid import search
from sdsl_jax.errors import SdslError
from sdsl_jax.explore import export as page
from sdsl_jax.explore import serve
from sdsl_jax.explore.charts import DATASETS, charts
from sdsl_jax.explore.explorer import Explorer
from sdsl_jax.report.vega import script_json
from sdsl_jax.theory.serving import outcome

FLAGS = {"target_params": "70B", "devices": 4, "batch": 8, "context": 4096, "candidates": "350M"}


@pytest.fixture(scope="module")
def explorer():
    return Explorer.of_flags(FLAGS)


def rows(data):
    return data if isinstance(data, list) else [{**data["shared"], **row} for row in data["rows"]]


def test_the_map_holds_the_speedups_of_the_library(explorer):
    """Every cell is `theory.outcome` at its middle, to the digits that a page has."""
    problem = sdsl.Problem(**FLAGS).ready
    data = explorer.view({}).to_json()["datasets"]
    cells = rows(data["map"])
    assert [row["lookahead"] for row in cells] == list(range(1, len(cells) + 1))
    for row, column in itertools.product(cells[::3], (0, 17, 39)):
        size = problem.sizes.non_embedding(row["size"][column], "draft")
        design = problem.inputs.fixed._replace(draft_params=size, lookahead=float(row["lookahead"]))
        expected = outcome(problem.inputs.serving, design)
        if row["speedup"][column] is None:
            assert float(expected.memory_bytes) > 0.9 * 80e9
        else:
            speedup = float(expected.speedup)
            np.testing.assert_allclose(row["speedup"][column], speedup, rtol=1e-4)
    best = data["best"][0]
    assert best["speedup"] >= np.nanmax(np.asarray([r["speedup"] for r in cells], float)) - 1e-4
    # The curve's top is the best design.
    curve = data["curve"][0]
    assert max(curve["speedup"]) == pytest.approx(best["speedup"], rel=1e-4)
    assert curve["low"][0] is None  # published laws have no draws
    within = {row["loss"]: (row["low"], row["high"]) for row in data["within"]}
    assert (
        within["within 5%"][0] <= within["within 1%"][0] <= best["size"] <= within["within 1%"][1]
    )


def test_the_round_adds_up(explorer):
    view = explorer.view({"drafting": "overlapped"})
    parts = {row["part"]: row["milliseconds"] for row in view.datasets["round"]}
    spent = sum(value for name, value in parts.items() if name != "plain steps")
    decode = parts["plain steps"] / spent
    gives = sdsl.Problem(**FLAGS, overlapped=True).ready
    assert decode == pytest.approx(float(search(gives).solved.outcome.decode_speedup), rel=1e-9)


def test_every_chart_is_valid_and_labelled(explorer):
    data = {k: rows(v) for k, v in explorer.view({}).to_json()["datasets"].items()}
    found = charts(explorer.choices)
    assert found.keys() == DATASETS.keys()
    for name, chart in found.items():
        assert chart["description"]
        named = set(re.findall(r'"name": "(\w+)"', json.dumps(chart)))
        assert named <= data.keys() | {name}
        compiled = vl_convert.vegalite_to_vega({**chart, "datasets": data})
        titles = [axis["title"] for axis in compiled["axes"] if axis.get("title")]
        assert titles
        assert all("(" in title or title.startswith("speed-up S") for title in titles), titles


def test_an_error_is_an_answer(explorer):
    assert "Batch" in explorer.answer({"batch": "x"})["error"]
    assert "error" in explorer.answer(None)
    assert explorer.answer({})["verdict"].startswith("Speculate")
    tight = explorer.view({"batch": "1024"})
    assert tight.verdict.startswith("No feasible design")
    assert not tight.pays


def test_a_page_is_complete_and_in_the_order_that_it_is_read(explorer, tmp_path):
    path = tmp_path / "page.html"
    grid = {"batch": [1, 64], "hardware": ["h100", "v5e"]}
    assert page.export(explorer, path, grid) == 4
    text = path.read_text()
    assert path.stat().st_size < page.LARGEST
    assert "http" not in re.sub(r'"\$schema":"[^"]*"', "", text.split('<script type="module">')[0])
    setup = json.loads(re.search(r'id="setup">(.*?)</script>', text, re.DOTALL)[1])
    controls = setup["controls"]
    assert [c["name"] for c in controls] == ["hardware", "batch"]
    for index, values in enumerate(itertools.product(*(c["values"] for c in controls))):
        state = dict(zip((c["name"] for c in controls), values))
        expected = explorer.view(state, page.FEWER_COLUMNS).to_json()
        assert setup["views"][index]["numbers"] == [list(x) for x in expected["numbers"]]
    # It opens in the state of its grid that is nearest to that of the explorer.
    assert (setup["state"]["batch"], setup["state"]["hardware"]) == ("1", "h100")
    first = path.read_bytes()
    page.export(explorer, path, grid)
    assert path.read_bytes() == first
    other = tmp_path / "mine.html"
    other.write_text("<title>mine</title>")
    with pytest.raises(SdslError, match="not replaced"):
        page.export(explorer, other, grid)


def test_names_cannot_close_a_script(tmp_path):
    evil = "</script><script>alert(1)</script>"
    assert "<" not in script_json({evil: [evil, float("nan")]})
    assert json.loads(script_json({evil: [evil, None]})) == {evil: [evil, None]}


@pytest.mark.parametrize(
    ("grid", "message"),
    [
        ({"file": ["/etc/passwd"]}, "no control"),
        ({"candidates": ["1B"]}, "no control"),
        ({"hardware": ["/etc/passwd"]}, "no choice"),
        ({"batch": ["0"]}, "Batch"),
        ({"batch": range(1, 51), "context": range(128, 178)}, "2,500 states"),
    ],
)
def test_a_grid_holds_what_the_page_offers(explorer, tmp_path, grid, message):
    with pytest.raises(SdslError, match=message):
        page.export(explorer, tmp_path / "page.html", grid)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_a_page(tmp_path, capsys):
    path = tmp_path / "page.html"
    run(["explore", "--target-params", "8B", "--export", str(path), "--grid", "batch=1,16"])
    assert "2 states" in capsys.readouterr().out
    assert "8B parameters" in path.read_text()
    for words, message in (
        (["--grid", "batch=1"], "--export"),
        (["--study", "x", "--batch", "2"], "--study"),
        (["--export", str(path), "--grid", "batch"], "batch=1,8,64"),
        (["--export", str(tmp_path / "page.txt")], ".html"),
        (["--study", str(tmp_path), "--export", str(path)], "holds"),
        (["--objective", "latency_seconds", "--export", str(path)], "objective"),
    ):
        with pytest.raises(SdslError, match=re.escape(message)):
            run(["explore", *words])


def test_without_the_extra_one_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "marimo", None)
    monkeypatch.setattr(serve.util, "find_spec", lambda name: None)
    with pytest.raises(SdslError, match=r"pip install 'sdsl_jax\[notebooks\]'"):
        run(["explore"])


@pytest.mark.slow
def test_a_study_has_its_own_choices_and_points(tiny_study, tmp_path):
    shutil.copytree(tiny_study, tmp_path / "study")
    explorer = Explorer.of_study(tmp_path / "study")
    view = explorer.view({})
    points = view.datasets["measured"]
    assert points
    records = explorer.records
    assert {p["name"] for p in points} <= {m.model_id for m in records.models}
    assert len(view.datasets["curve"][0]["low"])
    assert np.isfinite(view.datasets["curve"][0]["low"]).all()
    # The command line that the page shows gives the page's answer.
    words = shlex.split(view.command)[2:]
    assert words[0].endswith("problem.toml")
