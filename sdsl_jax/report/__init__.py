"""Figures and the HTML report, from records alone.

Import its modules: a figure of one of them needs few of the others.
"""
