"""The figures and tables of arXiv 2603.11053, computed again: one module each, and one page that
compares the numbers.

`python -m paper_figures` regenerates everything in this folder.
"""
