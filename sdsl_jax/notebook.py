"""How results show themselves in a notebook."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Mapping
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def table_of(caption: str, rows: Mapping[str, str]) -> str:
    """An HTML table of labels and values."""
    cells = "".join(
        f'<tr><th scope="row">{html.escape(label)}</th><td>{html.escape(value)}</td></tr>'
        for label, value in rows.items()
    )
    return f"<table><caption>{html.escape(caption)}</caption>{cells}</table>"


class Picture:
    """A figure of Matplotlib with a description, for readers who cannot see it."""

    def __init__(self, figure: Figure, alt: str):
        """Draws the figure.

        Args:
          figure: The figure.
          alt: What it shows, in a sentence or two.
        """
        import matplotlib

        drawn = io.BytesIO()
        # Equal figures give equal files.
        with matplotlib.rc_context({"svg.hashsalt": "sdsl_jax"}):
            figure.savefig(drawn, format="svg", metadata={"Date": None})
        self.svg = drawn.getvalue()
        self.alt = alt

    def __repr__(self) -> str:
        return f"Picture({self.alt!r})"

    def _repr_html_(self) -> str:
        """The picture, which takes no more than the width of its page."""
        data = base64.b64encode(self.svg).decode()
        return (
            f'<img alt="{html.escape(self.alt)}" style="max-width:100%;height:auto" '
            f'src="data:image/svg+xml;base64,{data}">'
        )
