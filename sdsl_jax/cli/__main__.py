"""`python -m sdsl_jax.cli`."""

from sdsl_jax.cli import main

main()
