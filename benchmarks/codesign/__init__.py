"""Constrained co-design beside scipy's optimisers."""

import os

# scipy works on a few numbers: more than one thread of its linear algebra only waits. Set before
# numpy is imported.
for _name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
