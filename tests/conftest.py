"""Fixtures that many tests share. Every test is seeded; Hypothesis draws the same examples in every run."""

import atexit
import contextlib
import gc
import os
import shutil
import sys
import tempfile
import time
from importlib import metadata
from pathlib import Path

# Most of the time of these tests goes into compiling many small programs once; the arithmetic is
# the same without the compiler's expensive passes, and with its older emitters where it still has
# them. The third flag makes bfloat16 round alike in every program. Set before jax is imported.
_flags = [
    "--xla_backend_optimization_level=0",
    "--xla_llvm_disable_expensive_passes=true",
    "--xla_allow_excess_precision=false",
]
if tuple(map(int, metadata.version("jaxlib").split(".")[:2])) < (0, 11):
    _flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(_flags))

# What one process of the run has compiled the others need not compile again.
if "PYTEST_XDIST_WORKER" not in os.environ and "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    _cache = tempfile.mkdtemp(prefix="sdsl-tests-")
    atexit.register(shutil.rmtree, _cache, ignore_errors=True)
    os.environ["JAX_COMPILATION_CACHE_DIR"] = _cache
    os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.05")

# Tokenised corpora and the font list of matplotlib stay out of the user's folders. What the C++
# compiler makes takes seconds for each type of weights; it stays with the compiled programs, for the
# slow tests after the others.
if "PYTEST_XDIST_WORKER" not in os.environ:
    _home = tempfile.mkdtemp(prefix="sdsl-tests-home-")
    atexit.register(shutil.rmtree, _home, ignore_errors=True)
    os.environ["XDG_CACHE_HOME"] = _home
    _kernels = Path(os.environ["JAX_COMPILATION_CACHE_DIR"], "kernels").absolute()
    _kernels.mkdir(mode=0o700, parents=True, exist_ok=True)
    Path(_home, "sdsl_jax").mkdir()
    Path(_home, "sdsl_jax", "kernels").symlink_to(_kernels)

import hypothesis
import jax
import pytest

from sdsl_jax import cli
from sdsl_jax.claims import Claim
from sdsl_jax.config import StudyConfig, from_dict
from sdsl_jax.models import ModelConfig, small_matmul
from sdsl_jax.study import run_study

# A vector meets a matrix only along an axis that the code names: broadcasting between different
# ranks is an error.
jax.config.update("jax_numpy_rank_promotion", "raise")

# Traces are millions of small objects that live long: looking through them as often as Python does
# takes a twentieth of the time.
gc.set_threshold(100_000, 20, 50)

hypothesis.settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=60)
hypothesis.settings.load_profile("repeatable")


@pytest.fixture(scope="module", autouse=True)
def programs_are_released():
    """Compiled programs stay with a process in memory maps, of which Linux allows 65,530: a whole suite would exceed them."""
    yield
    maps = Path("/proc/self/maps")
    if maps.exists() and maps.read_bytes().count(b"\n") > 45_000:
        jax.clear_caches()


@pytest.fixture
def x64():
    """Double precision for one test."""
    with jax.enable_x64(True):
        yield


TINY = {
    "name": "tiny",
    "data": {"sequence_length": 32},
    "ladder": {
        "draft_params": [600, 1200, 2500],
        "draft_tokens": [8_000, 16_000],
        "target_params": [5_000],
        "target_tokens": [16_000],
    },
    "training": {
        "batch_size": 8,
        "warmup_tokens": 1_000,
        "learning_rate": 0.003,  # higher, and the target is no better than its drafts
        "checkpoint_every_steps": 10,
        "evaluation_windows": 32,
    },
    "measure": {
        "lookaheads": [1, 3],
        "text_windows": 32,
        "prompts": 8,
        "prompt_tokens": 8,
        "new_tokens": 16,
        "latency_repetitions": 5,
        "expected_lookahead": 4,
    },
    "fit": {"starts": 8, "bootstrap": 20},
    "codesign": {"steps": 800, "starts": 4, "clock_repetitions": 2},
}


@contextlib.contextmanager
def claimed(folder):
    """A claim on a rung's folder, held by this process within the block."""
    claim = Claim(folder)
    assert claim.acquire()
    with claim:
        yield claim


def tiny(**sections) -> StudyConfig:
    """A study of seconds, with some sections changed."""
    changed = {
        k: {**v, **sections.get(k, {})} if isinstance(v, dict) else v for k, v in TINY.items()
    }
    return from_dict(StudyConfig, sections | changed)


def _made_once(tmp_path_factory, name: str, make) -> Path:
    """A folder that `make` fills, once for all workers. Tests that change files must copy it first."""
    base = tmp_path_factory.getbasetemp()
    runs = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name
    folder, finished = runs / "tiny", runs / "finished"
    try:
        runs.mkdir()
    except FileExistsError:
        # Another worker makes it; should it fail, this one makes its own.
        for _ in range(3000):
            if finished.exists():
                return folder
            time.sleep(0.1)
        folder = tmp_path_factory.mktemp("runs") / "tiny"
    make(folder)
    finished.touch()
    return folder


@pytest.fixture(scope="session")
def measured_study(tmp_path_factory) -> Path:
    """The folder of a tiny study whose models are trained and whose pairs are measured."""

    def make(folder: Path) -> None:
        for stage in ("train", "measure"):
            run_study(tiny(), folder, only=stage)

    return _made_once(tmp_path_factory, "measured-study", make)


@pytest.fixture(scope="session")
def tiny_study(measured_study, tmp_path_factory) -> Path:
    """The folder of a finished tiny study: fits, co-design, evidence, figures and report too."""

    def make(folder: Path) -> None:
        shutil.copytree(measured_study, folder)
        run_study(tiny(), folder)

    return _made_once(tmp_path_factory, "tiny-study", make)


@pytest.fixture
def sdsl(monkeypatch, capsys):
    """Runs a command of `sdsl` in this process; returns its exit status, output and error output."""
    # This process must not end on the SIGTERM that a command waits for.
    monkeypatch.setattr(cli, "end_on_sigterm", lambda: None)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["sdsl", *map(str, arguments)])
        status = 0
        try:
            cli.main()
        except SystemExit as exit_:
            status = int(exit_.code or 0)
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture(scope="session")
def compiled_product():
    """The product of few rows; whoever only collects the tests does not wait for its compiler."""
    if reason := small_matmul.unavailable():
        # A compiler that cannot compile it is a fault of ours.
        assert "cannot compile" not in reason, reason
        pytest.skip(reason)


@pytest.fixture
def small_model() -> ModelConfig:
    """Two layers, grouped-query attention, qk-norm."""
    return ModelConfig(
        vocab_size=11, width=16, layers=2, heads=4, kv_heads=2, head_dim=8, hidden=24
    )
