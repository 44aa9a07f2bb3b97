"""Two laws used together: intervals over their draws, and what is said of them."""

from pathlib import Path

import numpy as np
import pytest

from sdsl_jax.codesign.laws import (
    FORMS_HOLD,
    AlphaRange,
    intervals_over_draws,
    law_caveats,
    law_draws,
    unit_caveats,
)
from sdsl_jax.fitting.law_files import LoadedLaw, load_law
from sdsl_jax.theory import BESIROGLU, LogitGap

LOSS, ACCEPTANCE = load_law("besiroglu", "loss"), load_law("paper", "acceptance")
STATED = {"draft": {"params": 5e7, "tokens": 1e12}, "target": {"params": 7e10, "tokens": 1e12}}


def drawn(law, count, joint=None):
    return LoadedLaw("mine", law, type(law)(*(np.ones(count),) * 2), "a bootstrap", joint, [])


def test_draws_without_an_optimum_are_left_out_and_counted():
    found = intervals_over_draws(
        {"speedup": [2.0, 0.9, 9.0, 7.0]},
        speedup=[2.0, 0.9, 9.0, 7.0],
        has_optimum=[True, True, False, False],
    )
    assert found.ends["speedup"] == pytest.approx([0.955, 1.945])
    assert (found.share_that_speculate, found.share_without_optimum) == (0.25, 0.5)
    none = intervals_over_draws({"speedup": [2.0]}, [2.0], [False])
    assert (none.ends, none.share_without_optimum) == (None, 1.0)
    assert intervals_over_draws({"speedup": []}, [], []).ends is None


def test_a_quantity_of_speculating_draws_needs_enough_of_them():
    speedup = [1.0, 2.0, 3.0, 4.0]
    values = {"draft_params": [np.nan, 10.0, 20.0, 30.0], "speedup": speedup}
    rule = {"of_speculating": ("draft_params",), "more_than": 0.5}
    found = intervals_over_draws(values, speedup, np.ones(4, bool), **rule)
    assert found.ends["draft_params"] == pytest.approx([11.0, 29.0])
    assert found.ends["speedup"][0] == pytest.approx(1.15)
    # Half of them is not enough.
    few = intervals_over_draws(values, [1.0, 1.0, 3.0, 4.0], np.ones(4, bool), **rule)
    assert (few.ends, few.share_that_speculate) == (None, 0.5)


def test_draws_of_two_laws_are_cut_to_one_length():
    gap = LogitGap(1.0, 1.0)
    found = law_draws(drawn(gap, 7), drawn(gap, 5))
    assert (found.count, len(found.loss.level)) == (5, 5)
    assert found.basis.endswith(f"taken as independent; {FORMS_HOLD}")
    together = [drawn(gap, 7, Path("fits.json")) for _ in range(2)]
    found = law_draws(*together, most=3)
    assert (found.count, found.basis) == (3, f"a bootstrap; {FORMS_HOLD}")
    published = law_draws(LOSS, ACCEPTANCE)
    assert published.loss is None
    assert "loss law besiroglu: " in published.basis


def test_what_is_said_of_laws_out_of_their_range():
    losses = {"draft_loss": 2.5, "target_loss": 1.9}
    spread = AlphaRange(5e7, 0.6, 5e9, 0.7)
    said = law_caveats(LOSS, ACCEPTANCE, STATED, losses, spread)
    assert said[0].startswith("extrapolates the loss law for the draft (50M parameters, 1T tokens)")
    assert any("extrapolates the acceptance law (draft 50M, target 70B)" in text for text in said)
    assert any("R² = 0.602" in text for text in said)
    assert any("moves α from 0.600 to 0.700" in text for text in said)
    assert any("different texts" in text for text in said)
    bare = law_caveats(LOSS, ACCEPTANCE, STATED, losses, with_values=False)
    assert bare[0].startswith("extrapolates the loss law for the draft: fitted on")
    same = LOSS._replace(law=BESIROGLU, warnings=["it is old"])
    assert law_caveats(same, ACCEPTANCE, STATED, losses)[-1] == "loss law: it is old"


def test_units_that_are_doubted():
    assert unit_caveats(LOSS, ACCEPTANCE, STATED) == []
    few, far = unit_caveats(LOSS, ACCEPTANCE, {"target": {"params": 7e10, "tokens": 15e3}})
    assert few.startswith("the target has fewer training tokens (15k) than parameters (70B)")
    assert "15k training tokens of the target (333,333 times)" in far
    assert unit_caveats(LOSS, ACCEPTANCE, {"draft": {"tokens": 1e12}}) == []
