"""The notebooks run, and what they show is right.

Each runs once, in a process of its own; the pages of the documentation are made of the same runs.
"""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from sdsl_jax.notebook import Picture

pytest.importorskip("marimo")

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.py"))

_spec = importlib.util.spec_from_file_location("notebook_hook", ROOT / "docs/hooks/notebooks.py")
assert _spec is not None
assert _spec.loader is not None
hook = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(hook)


def numbers(name):
    """The numbers that a notebook defines."""
    return hook.results(ROOT / f"notebooks/{name}.py")["numbers"]


@pytest.mark.slow
def test_which_draft():
    found = numbers("which_draft")
    assert found["low"] < found["best_draft"] < found["high"]
    assert found["best_speedup"] > 1
    assert 0 < found["with_target"] < 1


@pytest.mark.slow
def test_train_a_ladder():
    found = numbers("train_a_ladder")
    assert found["low"] <= found["best_draft"] <= found["high"]
    assert 0.3 < found["best_alpha"] < 1
    assert found["left_out_error"] < 0.2


@pytest.mark.slow
def test_measure_a_pair():
    found = numbers("measure_a_pair")
    assert 0.6 < found["alpha"] < 0.85
    assert found["largest_check"] < 4.1
    assert found["formula_error"] < 0.2
    assert found["best_lookahead"] >= 1


@pytest.mark.slow
def test_codesign_by_gradient():
    found = numbers("codesign_by_gradient")
    assert found["best_draft"] > 0
    assert found["gradient_error"] < 1e-7
    assert found["lookahead_error"] < 1e-6
    assert found["theorem_error"] < 0.02
    assert found["saved"] > 0


@pytest.mark.slow
def test_decoder_is_right():
    found = numbers("decoder_is_right")
    assert found["total"] == pytest.approx(1, abs=1e-5)
    assert found["p_wrong"] < found["FALSE_ALARM"] < found["p_right"]


@pytest.mark.slow
def test_marimo_has_nothing_to_say():
    command = [sys.executable, "-m", "marimo", "check", "--strict", *map(str, NOTEBOOKS)]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_their_text(notebook):
    """A notebook has one title, names pages that exist, and is listed in the README and the site's menu."""
    text = notebook.read_text("utf-8")
    setup, cells = hook.cells_of(text)
    assert setup is not None
    assert [
        i for i, cell in enumerate(cells) if re.search("^# ", cell.code, re.M) and cell.hidden
    ] == [0]
    for page in hook.PAGE.findall(text):
        assert (ROOT / "docs" / page[0]).exists()
    assert f"[{notebook.name}]({notebook.name})" in (ROOT / "notebooks/README.md").read_text(
        "utf-8"
    )
    assert f"notebooks/{notebook.stem}.md" in (ROOT / "mkdocs.yml").read_text("utf-8")


def test_cells_of_a_notebook():
    source = (
        "import marimo\n\napp = marimo.App()\n\nwith app.setup:\n    import math\n\n\n"
        "@app.cell(hide_code=True)\ndef _():\n    # Why.\n    a = 1\n    return (a,)\n\n\n"
        "@app.cell\ndef _(\n    a,\n):\n    a + 1\n    return\n\n\nif __name__ == '__main__':\n    app.run()\n"
    )
    setup, cells = hook.cells_of(source)
    assert setup == ("import math", False)
    assert cells == [("# Why.\na = 1", True), ("a + 1", False)]


def test_a_notebook_that_fails_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr(hook, "RUNS", tmp_path / "runs")
    notebook = tmp_path / "broken.py"
    notebook.write_text(
        "import marimo\n\napp = marimo.App()\n\n\n@app.cell\ndef _():\n    raise ValueError('on purpose')\n    return\n"
    )
    with pytest.raises(RuntimeError, match="on purpose"):
        hook.results(notebook)
    assert not list((tmp_path / "runs").glob("*.json"))


def test_a_picture_has_a_description_and_equal_figures_give_equal_files():
    def picture():
        figure = Figure()
        figure.subplots().plot([1, 2])
        return Picture(figure, 'a "line"')

    shown = picture()._repr_html_()
    assert 'alt="a &quot;line&quot;"' in shown
    assert shown == picture()._repr_html_()
