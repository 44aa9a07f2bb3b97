"""How results show themselves in a notebook."""

from __future__ import annotations

import html
from collections.abc import Mapping


def table_of(caption: str, rows: Mapping[str, str]) -> str:
    """An HTML table of labels and values."""
    cells = "".join(
        f'<tr><th scope="row">{html.escape(label)}</th><td>{html.escape(value)}</td></tr>'
        for label, value in rows.items()
    )
    return f"<table><caption>{html.escape(caption)}</caption>{cells}</table>"
