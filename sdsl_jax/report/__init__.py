"""Figures and the HTML report, from records alone."""

from sdsl_jax.report.figures import draw_figures
from sdsl_jax.report.html import write_report

__all__ = ["draw_figures", "write_report"]
