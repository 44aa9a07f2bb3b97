"""The theory stands on jax and numpy alone: looked at in a fresh interpreter, after it has been used."""

import json
import subprocess
import sys
from pathlib import Path

import sdsl_jax

USE = """
import json, sys
import sdsl_jax
before = [m for m in sys.modules]
s = sdsl_jax.speedup(0.7, 4, 0.05)
g = sdsl_jax.optimal_lookahead(0.7, 0.05)
import jax
n = jax.jit(lambda: sdsl_jax.optimal_draft(lambda n: 1 - (1e3 / n) ** 0.3, lambda n: n / 1e9, (1e4, 1e9)))()
from sdsl_jax.theory import BetaAcceptance
BetaAcceptance(6.0, 3.0).tokens_per_round_over_prompts(5)
print(json.dumps([before, list(sys.modules), float(s), float(g.lookahead), float(n.params)]))
"""


def test_what_the_theory_loads():
    done = subprocess.run([sys.executable, "-c", USE], capture_output=True, text=True, check=True)
    before, after, s, gamma, size = json.loads(done.stdout)
    # `import sdsl_jax` alone does not even load jax.
    assert not {m.partition(".")[0] for m in before} & {
        "jax",
        "numpy",
        "flax",
        "orbax",
        "optax",
        "pandas",
        "matplotlib",
    }
    packages = {m.partition(".")[0] for m in after}
    assert not packages & {
        "flax",
        "orbax",
        "optax",
        "chex",
        "grain",
        "pandas",
        "matplotlib",
        "tyro",
        "rich",
        "tokenizers",
    }
    ours = {m for m in after if m.startswith("sdsl_jax.")}
    assert ours
    below = {"sdsl_jax.errors", "sdsl_jax.lazy_names", "sdsl_jax.ranges", "sdsl_jax.theory"}
    assert all(m in below or m.startswith("sdsl_jax.theory.") for m in ours), ours
    assert s > 1
    assert gamma > 1
    assert 1e4 < size < 1e9


def test_no_private_module_of_jax_is_imported():
    package = Path(sdsl_jax.__file__).parent
    assert not [p.name for p in package.rglob("*.py") if "jax._src" in p.read_text("utf-8")]
