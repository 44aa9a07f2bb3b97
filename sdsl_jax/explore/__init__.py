"""The explorer: a page on which the laws answer as fast as a slider moves."""
