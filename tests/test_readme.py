"""The Python of the README runs, and gives the numbers that stand beside it."""

import re
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

BLOCKS = re.findall(
    r"```python\n(.*?)```",
    (Path(__file__).parent.parent / "README.md").read_text("utf-8"),
    re.DOTALL,
)


def test_your_own_functions():
    names: dict = {}
    exec(BLOCKS[0], names)
    found = names["best"](names["theta"])
    assert float(found.params) == pytest.approx(711e6, rel=1e-3)
    assert [float(x) for x in found.indifference_1pct] == pytest.approx([481e6, 1.026e9], rel=2e-3)
    assert (float(found.lookahead), float(found.speedup)) == (
        pytest.approx(7.8, abs=0.05),
        pytest.approx(2.99, abs=0.005),
    )
    assert len(BLOCKS[0].splitlines()) <= 12


def test_the_theory():
    names: dict = {}
    exec(BLOCKS[1], names)
    assert float(names["found"].lookahead) == pytest.approx(5.48, abs=0.005)
    assert int(names["found"].lookahead_integer) == 6
    assert float(names["opt_30b"].optimum().params) == pytest.approx(189e6, rel=0.005)
    assert float(names["elasticities"](names["opt_30b"]).target_params) == pytest.approx(
        0.575, abs=5e-4
    )


def test_nothing_is_left_to_fill_in():
    text = (Path(__file__).parent.parent / "README.md").read_text("utf-8")
    prose = re.sub(r"`[^`]+`", "", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    assert not re.findall(r"\b[A-Z]{3,}_[A-Z]{3,}\b", prose)


def test_the_decoder():
    names: dict = {}
    exec(BLOCKS[2], names)
    events = names["run"].events
    assert [int(x) for x in events.emitted.sum(axis=1)] == [40, 20]
