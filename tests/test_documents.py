from __future__ import annotations

import dataclasses
import json
import math
from typing import Literal

import numpy as np
import pytest

from sdsl_jax.errors import SdslError
from sdsl_jax.records.documents import from_json, schema_of, to_json


@dataclasses.dataclass(frozen=True)
class Point:
    """A point.

    Attributes:
      x: abscissa, in metres
      name: label
      side: of the axis
    """

    x: float
    name: str = ""
    side: Literal["left", "right"] = "right"


@dataclasses.dataclass(frozen=True)
class Curve:
    """A curve.

    Attributes:
      points: points of the curve, in the order in which a pen
        that draws it would pass them
      ends: both ends
      by_name: the same points by name
    """

    points: tuple[Point, ...]
    ends: tuple[float, float] | None
    by_name: dict[str, Point] = dataclasses.field(default_factory=dict)
    count: int | None = None


CURVE = Curve((Point(1.0), Point(math.inf, "b")), (0.5, 2.0), {"b": Point(2.0, "b")})


def test_what_is_written_is_read():
    values = json.loads(json.dumps(to_json(CURVE), allow_nan=False))
    assert values["points"][1] == {
        "x": None,
        "name": "b",
        "side": "right",
    }  # JSON has no infinity
    read = from_json(Curve, values | {"of a later version": 1}, "the file")
    assert math.isnan(read.points[1].x)
    assert read == dataclasses.replace(CURVE, points=(CURVE.points[0], read.points[1]))
    assert to_json({"a": np.arange(2), "b": np.float32(np.nan)}) == {"a": [0, 1], "b": None}


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"points": 3}, "the file is damaged: it holds 3 as points."),
        ({"points": [{"name": "a"}]}, "the file is damaged: it lacks the key x."),
        ({"points": [{"x": "one"}]}, "it holds 'one' as x."),
        ({"points": [{"x": 1, "side": "up"}]}, "it holds 'up' as side."),
        ({"ends": [1.0]}, r"it holds \[1.0\] as ends."),
        ({"count": "two"}, "it holds 'two' as count."),
    ],
)
def test_damage_is_named(change, words):
    with pytest.raises(SdslError, match=words):
        from_json(Curve, to_json(CURVE) | change, "the file")


@dataclasses.dataclass(frozen=True)
class Either:
    """A point or a curve."""

    what: Point | Curve | None


def test_of_two_kinds_of_object_the_one_that_fits_is_read():
    for what in (CURVE.points[0], dataclasses.replace(CURVE, points=()), None):
        assert from_json(Either, to_json(Either(what)), "the file") == Either(what)
    with pytest.raises(SdslError, match="it lacks the key"):
        from_json(Either, {"what": {"name": "a"}}, "the file")


def test_a_missing_key_is_named():
    with pytest.raises(SdslError, match="it lacks the key ends"):
        from_json(Curve, {"points": []}, "the file")


def test_the_schema_takes_the_meaning_of_keys_from_docstrings():
    keys = schema_of(Curve)
    assert keys["points"]["description"].endswith("in which a pen that draws it would pass them")
    assert keys["count"]["description"] == ""
    assert keys["points"]["keys"]["x"] == {"type": "float", "description": "abscissa, in metres"}
    assert keys["by_name"]["keys"]["name"]["description"] == "label"
