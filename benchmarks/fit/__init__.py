"""Fits of a loss law beside other fitters."""

import os

# scipy works on five numbers: more than one thread of its linear algebra only waits, and on a
# machine that is not idle takes twenty times as long. Set before numpy is imported; XLA has threads
# of its own.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
