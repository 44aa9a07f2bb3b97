"""The look that figures share."""

import subprocess
import sys

import pytest

from sdsl_jax.report.style import colours, error_bars, series

# A notebook has chosen how figures are shown before it imports anything of ours.
NOTEBOOK = """
import sys
from pathlib import Path
import matplotlib
matplotlib.use("svg")
from sdsl_jax.report.style import figure
with figure(Path(sys.argv[1]), "drawn", 1, 1, (2, 2)) as (_, axes):
    axes[0, 0].plot([0, 1])
assert matplotlib.get_backend() == "svg", matplotlib.get_backend()
assert "matplotlib.pyplot" not in sys.modules
"""


@pytest.mark.slow
def test_the_backend_of_a_notebook_stays(tmp_path):
    subprocess.run([sys.executable, "-c", NOTEBOOK, str(tmp_path)], check=True)
    assert (tmp_path / "drawn.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "drawn.pdf").read_bytes().startswith(b"%PDF")


@pytest.mark.parametrize("count", [1, 7, 8, 20])
def test_no_two_colours_of_a_figure_are_alike(count):
    assert len({*colours(count)}) == count


def test_series_differ_without_their_colours():
    styles = [style for _, style in series("abcdefg")]
    assert len({style["marker"] for style in styles}) == 7


def test_error_bars_are_lengths():
    class Row:
        alpha, alpha_low, alpha_high = 0.5, 0.25, 1.0

    assert error_bars([Row], "alpha") == [[0.25], [0.5]]
