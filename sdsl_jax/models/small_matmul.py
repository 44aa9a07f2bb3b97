"""Products of a few rows with a large matrix on a CPU, which read the weights once.

A verify pass multiplies a few rows with every matrix of the model, and XLA's product takes longer for
it than reading the weights does. The product here (`small_matmul.cc`) reads them once and is called
through `jax.ffi`. It is compiled when it is first needed, by the machine's own C++ compiler for the
machine's own processor, and kept in the user's cache folder. Where that is not possible, XLA's product
serves, and `absence` says why.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import math
import os
import secrets
import shutil
import subprocess
import tempfile
import threading
from dataclasses import dataclass
from pathlib import Path

import jax
import jax.numpy as jnp
import jaxlib
from jaxtyping import Array, Float

from sdsl_jax.cache_folders import kernels_folder, processor
from sdsl_jax.errors import SdslError, require
from sdsl_jax.models.weights import Int8Matrix, Matrix

_SOURCE = Path(__file__).with_suffix(".cc")
# The order of sums is that of the source: nothing here lets the compiler change it.
_FLAGS = ["-std=c++20", "-O2", "-march=native", "-ffp-contract=fast", "-fno-math-errno"]
_FLAGS += ["-w", "-fPIC", "-shared"]
_COMPILERS = ("c++", "g++", "clang++")
_SECONDS = 600
_INSTALL = "install a C++ compiler, on Debian with apt install g++"
_CHOOSE = "name another C++ compiler in the environment variable CXX"
_MOVE = "let XDG_CACHE_HOME or TMPDIR name a folder from which programs may be loaded"
# The source is compiled for one type of weights at a time: most users need one, and it takes seconds.
_TYPES = ("float32", "bfloat16", "int8")
_SYMBOL = "SmallMatmul"

# Where it is faster than XLA's product (docs/decoding.md): up to 8 rows with matrices of 131k weights,
# to 16 with a million. Smaller ones stay in the caches, where reading costs little. One row is among
# them because XLA multiplies it by one thread.
_MOST_ROWS = ((1 << 17, 8), (1 << 20, 16))
# XLA's product turns weights of another type into float32 before it multiplies, whatever their number.
_MOST_NARROW_ROWS = ((1, 16),)


@dataclass(frozen=True)
class Absence:
    """Why XLA's product serves a CPU, and what would change that; both are clauses of a sentence.

    Attributes:
      why: The reason, such as "no C++ compiler was found".
      remedy: What to do, such as "install a C++ compiler".
    """

    why: str
    remedy: str


def absence(weights: str = "float32") -> Absence | None:
    """Why the product here is not used on this CPU; None where it is, and on other devices.

    Args:
      weights: Type of the weights: float32, bfloat16 or int8.
    """
    if jax.default_backend() != "cpu":
        return None
    if os.environ.get("SDSL_NO_SMALL_MATMUL", "") not in ("", "0"):
        return Absence("SDSL_NO_SMALL_MATMUL is set", "unset that variable")
    return _load(weights)


def unavailable(weights: str = "float32") -> str:
    """Why XLA's product serves instead, as a sentence; empty where the product here is used.

    Args:
      weights: Type of the weights: float32, bfloat16 or int8.
    """
    if jax.default_backend() != "cpu":
        return f"It is for CPUs, and JAX computes on {jax.default_backend()}."
    missing = absence(weights)
    return f"{missing.why[0].upper()}{missing.why[1:]}; {missing.remedy}." if missing else ""


def serves(x: Array | jax.ShapeDtypeStruct, weight: Matrix | jax.ShapeDtypeStruct) -> bool:
    """Whether `small_matmul` is to be used for x · weight, decided when the program is traced.

    Args:
      x: The rows, along any number of leading axes.
      weight: The weights.
    """
    limits = _MOST_ROWS if weight.dtype.name == "float32" else _MOST_NARROW_ROWS
    most = max((rows for weights, rows in limits if weight.size >= weights), default=0)
    return (
        1 <= math.prod(x.shape[:-1]) <= most
        and x.dtype.name in ("float32", "bfloat16")
        and weight.dtype.name in _TYPES
        and not unavailable(weight.dtype.name)
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def small_matmul(
    x: Float[Array, "M D"], weight: Matrix, transposed: bool = False
) -> Float[Array, "M F"]:
    """x · weight with float32 sums, rounded to the type that x @ weight has.

    Every row of the result is the same to the last bit however many rows there are. Gradients are
    XLA's; int8 weights have none.

    Args:
      x: A few rows, float32 or bfloat16.
      weight: The weights [D, F], float32 or bfloat16, or an `Int8Matrix`.
      transposed: The weights are [F, D] instead.

    Raises:
      SdslError: The shapes do not fit, `unavailable` gives a reason, or int8 weights are to be
        differentiated.
    """
    require(
        x.shape[1] == weight.shape[1 if transposed else 0],
        f"rows of shape {x.shape} cannot be multiplied with weights of shape {weight.shape}"
        f"{', transposed' if transposed else ''}.",
    )
    if reason := unavailable(weight.dtype.name):
        raise SdslError(f"the product of few rows is not available. {reason}")
    columns = weight.shape[0] if transposed else weight.shape[1]
    call = jax.ffi.ffi_call(
        _target(weight.dtype.name),
        jax.ShapeDtypeStruct((x.shape[0], columns), jnp.float32),
        vmap_method="sequential",
    )
    arrays = (weight.values, weight.scales) if isinstance(weight, Int8Matrix) else (weight,)
    y = call(x.astype(jnp.float32), *arrays, along=transposed)
    return y.astype(x.dtype if isinstance(weight, Int8Matrix) else jnp.result_type(x, weight))


def _forward(x: Array, weight: Matrix, transposed: bool) -> tuple[Array, tuple[Array, Array]]:
    if isinstance(weight, Int8Matrix):
        raise SdslError("weights stored as int8 have no gradient.")
    return small_matmul(x, weight, transposed), (x, weight)


def _backward(transposed: bool, saved: tuple[Array, Array], gradient: Array) -> tuple[Array, Array]:
    x, weight = saved
    to_x = gradient @ (weight if transposed else weight.T)
    to_weight = gradient.T @ x if transposed else x.T @ gradient
    return to_x.astype(x.dtype), to_weight.astype(weight.dtype)


small_matmul.defvjp(_forward, _backward)


def _target(weights: str) -> str:
    """The name that XLA knows the product by."""
    return f"sdsl_small_matmul_{weights}"


# Programs are traced by several threads at once, and XLA takes one handler for each name.
_loading = threading.Lock()
_absences: dict[str, Absence | None] = {}


def _load(weights: str) -> Absence | None:
    """Loads the product for weights of a type once in a process; returns why that failed, if it did."""
    with _loading:
        if weights not in _absences:
            _absences[weights] = _register(weights)
        return _absences[weights]


def _register(weights: str) -> Absence | None:
    """Compiles the product if need be, and makes it known to XLA."""
    try:
        with tempfile.TemporaryDirectory(prefix="sdsl-") as scratch:
            library = _library(Path(scratch), weights)
    except _CompilerError as error:
        return error.absence
    except (OSError, subprocess.SubprocessError) as reason:
        return Absence(f"it cannot be compiled or loaded ({reason})", _MOVE)
    handler = jax.ffi.pycapsule(library[_SYMBOL])
    jax.ffi.register_ffi_target(_target(weights), handler, platform="cpu")
    return None


def _library(scratch: Path, weights: str) -> ctypes.CDLL:
    """The compiled product: from the cache, or made now in a scratch folder and kept if possible."""
    parts = [_SOURCE.read_text(encoding="utf-8"), *_FLAGS, weights, jaxlib.__version__, processor()]
    name = hashlib.sha256("\0".join(parts).encode()).hexdigest()[:20] + ".so"
    if os.environ.get("SDSL_NO_CACHE", "") not in ("", "0"):
        return ctypes.CDLL(str(_compile(scratch / name, weights)))
    kept = kernels_folder() / name
    if _ours(kept):
        with contextlib.suppress(OSError):  # damaged, perhaps: it is made anew
            return ctypes.CDLL(str(kept))
    made = _compile(scratch / name, weights)
    with contextlib.suppress(OSError):
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        partial = kept.with_name(f".{secrets.token_hex(4)}.partial")
        shutil.copy(made, partial)
        partial.chmod(0o700)
        partial.replace(kept)  # at once, however many processes make it
        if _ours(kept):
            # Loaded from there, since the scratch folder may hold no programs.
            return ctypes.CDLL(str(kept))
    return ctypes.CDLL(str(made))


def _ours(file: Path) -> bool:
    """Whether nobody else can have written a file, which will be executed."""
    try:
        stats = [path.stat() for path in (file, file.parent)]
    except OSError:
        return False
    return all(stat.st_uid == os.getuid() and not stat.st_mode & 0o022 for stat in stats)


class _CompilerError(Exception):
    """There is no compiler, or it fails."""

    def __init__(self, why: str, remedy: str):
        super().__init__(why)
        self.absence = Absence(why, remedy)


def _compile(output: Path, weights: str) -> Path:
    compilers = filter(None, (os.environ.get("CXX"), *_COMPILERS))
    compiler = next(filter(None, map(shutil.which, compilers)), None)
    if compiler is None:
        raise _CompilerError("no C++ compiler was found", _INSTALL)
    headers = ["-isystem", jax.ffi.include_dir(), f"-DSDSL_{weights.upper()}"]
    command = [compiler, *_FLAGS, *headers, str(_SOURCE), "-o", str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=_SECONDS, check=False)
    if done.returncode:
        first = next((x for x in done.stderr.splitlines() if "error" in x), "it gave no reason")
        raise _CompilerError(f"{compiler} cannot compile it: {first}", _CHOOSE)
    return output
