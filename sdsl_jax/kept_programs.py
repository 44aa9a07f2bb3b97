"""Programs that a later process runs without tracing them again.

JAX's persistent cache spares compilation, but a program must be traced and lowered before it is
found there, and that takes seconds for one that is differentiated twice. `kept_program` keeps the
executable itself, beside JAX's entries, under the digest of everything that it depends on.
"""

from __future__ import annotations

import functools
import hashlib
import os
import pickle
import secrets
import zlib
from collections.abc import Callable, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import numpy as np

from sdsl_jax.cache_folders import processor

_Result = TypeVar("_Result")
# Packages whose sources the kept programs are traced from, within this one; "" are its own modules.
_TRACED = ("", "theory", "codesign")
_VERSIONS = ("jax", "jaxlib", "numpy", "optax")
# What an environment can change in a compiled program.
_SETTINGS = ("XLA_FLAGS", "JAX_PLATFORMS")


def kept_program(
    function: Callable[..., _Result], static_argnums: Sequence[int] = ()
) -> Callable[..., _Result]:
    """`jax.jit` of a function, whose compiled programs are kept where JAX's persistent cache is on.

    A program that calls a library such as LAPACK is not kept. Wherever one cannot be kept or loaded,
    it is compiled as ever. Under a transformation of JAX, and without a persistent cache, this is
    `jax.jit`.

    Args:
      function: A function of a module, as for `jax.jit`; it closes over nothing.
      static_argnums: As for `jax.jit`; such arguments are told apart by their `repr`.
    """
    jitted = jax.jit(function, static_argnums=tuple(static_argnums))
    programs: dict[Any, Callable[..., Any]] = {}

    @functools.wraps(function)
    def call(*arguments: Any) -> _Result:
        dynamic = [a for i, a in enumerate(arguments) if i not in static_argnums]
        leaves, structure = jax.tree.flatten(dynamic)
        folder = _folder()
        if folder is None or any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return jitted(*arguments)
        leaves = [leaf if isinstance(leaf, jax.Array) else np.asarray(leaf) for leaf in leaves]
        static = {i: arguments[i] for i in static_argnums}
        kinds = tuple((str(leaf.dtype), leaf.shape) for leaf in leaves)
        kind = tuple(static.values()), structure, kinds, jnp.result_type(float), folder
        if kind in programs:
            return programs[kind](*leaves)

        def flat(*leaves: Any) -> Any:
            given = iter(jax.tree.unflatten(structure, leaves))
            whole = (static[i] if i in static else next(given) for i in range(len(arguments)))
            return function(*whole)

        key = _digest(function.__module__, function.__qualname__, static, structure, kinds)
        name = f"{function.__name__.strip('_')}-{key}"
        file = folder / f"{name}.program"
        kept = file.exists()
        if kept and (loaded := _loaded(file, leaves)) is not None:
            programs[kind], result = loaded
            return result
        # JAX's entries are told apart by the name too. What was loaded from one of them cannot be
        # kept, and a file that could not be used came from one perhaps.
        flat.__name__ = f"{name}-{secrets.token_hex(4)}" if kept else name
        programs[kind] = _compiled(file, flat, leaves)
        return programs[kind](*leaves)

    return call


def _folder() -> Path | None:
    """Where programs are kept; None where nothing is kept, or more than one device is in play."""
    settings: dict[str, Any] = jax.config.values
    folder = settings["jax_compilation_cache_dir"]
    off = not settings["jax_enable_compilation_cache"] or settings["jax_default_device"] is not None
    return None if not folder or off or jax.process_count() > 1 else Path(folder)


def _digest(*of_program: Any) -> str:
    device = jax.local_devices()[0]
    settings = [os.environ.get(name) for name in _SETTINGS]
    machine = processor(), device.device_kind, jax.device_count()
    around = _sources(), settings, machine, jnp.result_type(float)
    return hashlib.sha256(repr((around, of_program)).encode()).hexdigest()[:32]


@functools.cache
def _sources() -> str:
    """The versions of the libraries, and the digest of the sources that programs are traced from."""
    digest = hashlib.sha256(repr([metadata.version(name) for name in _VERSIONS]).encode())
    for package in _TRACED:
        for file in sorted((Path(__file__).parent / package).glob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _loaded(file: Path, leaves: list[Any]) -> tuple[Callable[..., Any], Any] | None:
    """The program of a file, and its result; None where it cannot be loaded or run."""
    from jax.experimental.serialize_executable import deserialize_and_load

    try:
        # Like the entries of JAX's own cache, this is machine code that the user's folder holds.
        executable, skeleton = pickle.loads(zlib.decompress(file.read_bytes()))
        trees = jax.tree.structure((tuple(leaves), {})), jax.tree.structure(skeleton)
        program = deserialize_and_load(
            executable, *trees, execution_devices=jax.local_devices()[:1]
        )
        result = jax.block_until_ready(program(*leaves))
        os.utime(file)  # by which `sdsl cache` tells what was used last
    except Exception:  # of whatever kind: a file of another version, or half of one
        return None
    return program, result


def _compiled(file: Path, function: Callable[..., Any], leaves: list[Any]) -> Callable[..., Any]:
    """The program compiled now, and kept if it can be."""
    lowered = jax.jit(function).lower(*leaves)
    program = lowered.compile()
    # A call of a library works only in a process that has set the library up: loaded into another,
    # it would end that process.
    if "custom_call" in lowered.as_text():
        return program
    try:
        from jax.experimental.serialize_executable import serialize

        executable, _, out_tree = serialize(program)
        skeleton = jax.tree.unflatten(out_tree, range(out_tree.num_leaves))
        temporary = file.with_name(f".{file.stem}.{secrets.token_hex(4)}.partial")
        temporary.write_bytes(zlib.compress(pickle.dumps((executable, skeleton)), level=1))
        os.replace(temporary, file)
    except Exception:  # no room, no right to write, or a program that cannot be serialised
        pass
    return program
