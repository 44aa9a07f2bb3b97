import math

import pytest

from sdsl_jax.errors import SdslError
from sdsl_jax.ranges import require_distinct, require_in


@pytest.mark.parametrize(
    ("interval", "inside", "outside", "words"),
    [
        ("[1, inf)", (1, 1e9), (0.5, math.inf), "must be at least 1."),
        ("(0, inf)", (1e-9,), (0, -1, math.nan), "must be positive."),
        ("[0, inf)", (0, 3), (-1,), "must not be negative."),
        ("(0, 1)", (0.5,), (0, 1), r"must lie in \(0, 1\)."),
        ("[0, 1)", (0,), (80,), r"must lie in \[0, 1\); write it as a share: 0.8."),
        ("[-2, 2]", (-2, 2, (0, 1)), ((0, 3),), r"holds 3; every value must lie in \[-2, 2\]."),
    ],
)
def test_ends_of_intervals(interval, inside, outside, words):
    for value in inside:
        require_in(interval, "x", value)
    for value in outside:
        with pytest.raises(SdslError, match=f"^x .*{words}$"):
            require_in(interval, "x", value)


def test_lists():
    require_distinct("x", (), may_be_empty=True)
    with pytest.raises(SdslError, match="x is empty"):
        require_distinct("x", ())
    with pytest.raises(SdslError, match=r"x is \[1, 1\]; it repeats a value"):
        require_distinct("x", (1, 1))
