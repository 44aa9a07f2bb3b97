"""Warnings of a page, each said once, with what it concerns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from sdsl_jax.fitting.law_files import LawRecord
from sdsl_jax.records.codesign import CodesignEntry
from sdsl_jax.report.style import NAMES

T = TypeVar("T")


def said_once(warned: Iterable[tuple[T, Iterable[str]]]) -> list[tuple[str, list[T]]]:
    """Every warning once, with what it concerns.

    Args:
      warned: Things, each with the warnings about it.
    """
    said: dict[str, list[T]] = {}
    for thing, warnings in warned:
        for text in warnings:
            said.setdefault(text, []).append(thing)
    return list(said.items())


def optima_warnings(entries: Sequence[CodesignEntry]) -> list[tuple[str, list[str]]]:
    """The warnings about optima, with the rows that each concerns."""
    return [
        (text, ["every row"] if len(concerned) == len(entries) else _rows(concerned, entries))
        for text, concerned in said_once((e, e.warnings) for e in entries)
    ]


def _rows(concerned: Sequence[CodesignEntry], entries: Sequence[CodesignEntry]) -> list[str]:
    """Names of some optima: their targets, by costs and laws."""

    def named(rows: Iterable[CodesignEntry]) -> dict[tuple[str, str], list[str]]:
        groups: dict[tuple[str, str], list[str]] = {}
        for e in rows:
            groups.setdefault((e.cost_model, e.acceptance_law), []).append(e.target_id)
        return groups

    targets, every = named(concerned), named(entries)
    laws = {law for _, law in every}
    lines: dict[str, None] = {}
    for (costs, law), ids in targets.items():
        which = "all targets" if ids == every[costs, law] else ", ".join(ids)
        alike = all(targets.get((costs, other)) == ids for other in laws)
        lines[f"{which} at {NAMES[costs]}" + ("" if alike else f" ({NAMES[law]})")] = None
    return list(lines)


def marked(
    entries: Sequence[CodesignEntry],
) -> dict[str, list[tuple[CodesignEntry, list[int]]]]:
    """By acceptance law every optimum, with the numbers of the warnings about it, from 1."""
    texts = [text for text, _ in said_once((e, e.warnings) for e in entries)]
    laws: dict[str, list[tuple[CodesignEntry, list[int]]]] = {}
    for e in entries:
        numbers = [texts.index(text) + 1 for text in e.warnings]
        laws.setdefault(e.acceptance_law, []).append((e, numbers))
    return laws


def fit_warnings(fits: Iterable[LawRecord]) -> list[tuple[str, list[str]]]:
    """The warnings about fits, by the names of the laws that they concern."""
    laws: dict[str, list[str]] = {}
    for text, names in said_once((NAMES.get(fit.law, fit.law), fit.warnings) for fit in fits):
        laws.setdefault(", ".join(names), []).append(text)
    return list(laws.items())
