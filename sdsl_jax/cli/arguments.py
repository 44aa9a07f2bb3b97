"""Types of arguments that several commands take."""

from __future__ import annotations

from typing import Annotated

import tyro

from sdsl_jax.counts import read_count


def _whole(words: list[str]) -> int:
    value = read_count(words[0])
    if value is None or not value.is_integer():
        raise ValueError(f"{words[0]!r} is no whole number such as 4096, 4k or 4,096")
    return int(value)


# A whole number that may be written as any count: 4096, 4k, 4,096.
WholeCount = Annotated[
    int,
    tyro.constructors.PrimitiveConstructorSpec(
        nargs=1,
        metavar="COUNT",
        instance_from_str=_whole,
        is_instance=lambda value: isinstance(value, int),
        str_from_instance=lambda value: [str(value)],
    ),
]
