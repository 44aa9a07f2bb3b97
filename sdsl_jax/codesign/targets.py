"""Targets in need of a draft, from the command line or a CSV."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sdsl_jax.counts import parse_size, short_count
from sdsl_jax.csv_table import is_missing, listed_names, read_csv
from sdsl_jax.errors import require


@dataclass(frozen=True)
class Target:
    """A target in need of a draft: M, and the training tokens D of the draft and D′ of the target."""

    target_params: float
    draft_tokens: float
    target_tokens: float
    name: str = ""


def few_tokens(role: str, params: float, tokens: float) -> list[str]:
    """A sentence where a draft or target has fewer training tokens than parameters: one is probably in another unit."""
    if tokens >= params:
        return []
    return [
        f"the {role} has fewer training tokens ({short_count(tokens)}) than parameters ({short_count(params)}): is a suffix "
        "missing?"
    ]


def targets_from_csv(
    path: Path, draft_tokens: float | None = None, target_tokens: float | None = None
) -> list[Target]:
    """Targets from a CSV with the column target_params, and draft_tokens, target_tokens and name.

    Args:
      path: of the file; capitals and blanks in its header do not matter.
      draft_tokens: for rows that give none.
      target_tokens: for rows that give none.

    Raises:
      SdslError: the file cannot be read, or lacks a column or a number.
    """
    table = read_csv(path, lower=True)
    require(
        "target_params" in table,
        f"{path} has no column target_params; its columns are {listed_names(table.names)}.",
    )
    otherwise = {
        "target_params": None,
        "draft_tokens": draft_tokens,
        "target_tokens": target_tokens,
    }
    cells = {name: table.column(name) for name in (*otherwise, "name") if name in table}

    def value(name: str, row: int) -> float:
        text = cells[name][row] if name in cells else ""
        where = f"{path}, line {table.lines[row]}:"
        if not is_missing(text):
            unclear = table.is_unclear(text)
            require(
                not unclear,
                f"{where} {name} is {text!r}, perhaps with a decimal comma; write 1300 or 1.3.",
            )
            return parse_size(text, f"{where} {name}")
        hint = (
            ""
            if name == "target_params"
            else f"; give the column, or --{name.replace('_', '-')} for all"
        )
        require(otherwise[name] is not None, f"{where} no {name}{hint}.")
        return float(otherwise[name] or 0)

    return [
        Target(
            value("target_params", row),
            value("draft_tokens", row),
            value("target_tokens", row),
            cells["name"][row] if "name" in cells else "",
        )
        for row in range(len(table))
    ]
