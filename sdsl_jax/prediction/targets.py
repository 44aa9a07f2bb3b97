"""Targets in need of a draft, from the command line or a CSV."""

from __future__ import annotations

import csv
from dataclasses import dataclass
from pathlib import Path

from sdsl_jax.counts import parse_count
from sdsl_jax.errors import SdslError, require


@dataclass(frozen=True)
class Target:
    """A target in need of a draft: M, and the training tokens D of the draft and D′ of the target."""

    target_params: float
    draft_tokens: float
    target_tokens: float
    name: str = ""


def targets_from_csv(path: Path, draft_tokens: float | None = None, target_tokens: float | None = None) -> list[Target]:
    """Targets from a CSV with the column target_params, and draft_tokens, target_tokens and name.

    Args:
      path: of the file; capitals and spaces in its header do not matter.
      draft_tokens: for rows that give none.
      target_tokens: for rows that give none.

    Raises:
      SdslError: the file cannot be read, or lacks a column or a number.
    """
    found = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, skipinitialspace=True)
            names = [(name or "").strip().lower() for name in reader.fieldnames or []]
            require(
                "target_params" in names,
                f"{path} has no column target_params; its columns are {', '.join(names) or 'none'}.",
            )
            reader.fieldnames = names
            for row in reader:
                found.append(_target(row, f"{path}, line {reader.line_num}", draft_tokens, target_tokens))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise SdslError(f"cannot read {path} ({getattr(error, 'strerror', None) or 'not a CSV'}).") from None
    require(bool(found), f"{path} holds no rows below its header.")
    return found


def _target(row: dict[str, Any], where: str, draft_tokens: float | None, target_tokens: float | None) -> Target:
    require(None not in row, f"{where}: more cells than columns.")
    values = {}
    for name, otherwise in (("target_params", None), ("draft_tokens", draft_tokens), ("target_tokens", target_tokens)):
        text = (row.get(name) or "").strip()
        if text:
            values[name] = parse_count(text, f"{where}: {name}")
        else:
            hint = "" if name == "target_params" else f"; give the column, or --{name.replace('_', '-')} for all"
            require(otherwise is not None, f"{where}: no {name}{hint}.")
            values[name] = float(otherwise or 0)
    return Target(**values, name=(row.get("name") or "").strip())
