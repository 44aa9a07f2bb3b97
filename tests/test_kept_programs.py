"""Programs that are kept beside JAX's cache: what is loaded, and what is compiled again."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from sdsl_jax.kept_programs import kept_program

TRACED = []


class Pair(NamedTuple):
    power: jax.Array
    total: jax.Array


def powers(exponent: int, tree: dict) -> Pair:
    TRACED.append(exponent)
    return Pair(tree["x"] ** exponent, tree["x"].sum() + tree["y"])


def halved(x):
    TRACED.append("halved")
    return jnp.linalg.solve(2 * jnp.eye(len(x)), x)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    before = jax.config.jax_compilation_cache_dir
    jax.config.update("jax_compilation_cache_dir", str(tmp_path))
    TRACED.clear()
    yield tmp_path
    jax.config.update("jax_compilation_cache_dir", before)


def programs(folder):
    return sorted(folder.glob("*.program"))


def called(exponent=2, size=3):
    """As in a process of its own, which has no program in memory."""
    found = kept_program(powers, static_argnums=(0,))(exponent, {"x": np.arange(size), "y": 1.0})
    np.testing.assert_array_equal(found.power, np.arange(size) ** exponent)
    assert float(found.total) == np.arange(size).sum() + 1
    return found


def test_a_kept_program_is_not_traced_again(folder):
    called()
    assert (TRACED, len(programs(folder))) == ([2], 1)
    assert isinstance(called(), Pair)
    assert TRACED == [2]


def test_other_constants_and_shapes_are_other_programs(folder):
    called()
    called(exponent=3)
    called(size=4)
    assert (TRACED, len(programs(folder))) == ([2, 3, 2], 3)


def test_a_damaged_file_is_compiled_anew(folder):
    called()
    (file,) = programs(folder)
    whole = file.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"nonsense"):
        file.write_bytes(damaged)
        called()
    assert TRACED == [2] * 4
    called()
    assert TRACED == [2] * 4


def test_a_program_that_calls_a_library_is_not_kept(folder):
    np.testing.assert_allclose(kept_program(halved)(np.ones(3)), np.full(3, 0.5))
    assert (TRACED, programs(folder)) == (["halved"], [])


def test_it_is_mapped_and_differentiated_as_any_function(folder):
    cubes = kept_program(powers, static_argnums=(0,))

    def cube(x):
        return cubes(3, {"x": x, "y": 0.0}).power

    assert float(jax.grad(cube)(2.0)) == 12.0
    np.testing.assert_array_equal(jax.vmap(cube)(jnp.arange(3.0)), [0.0, 1.0, 8.0])
    assert programs(folder) == []


def test_without_a_cache_nothing_is_kept(folder, monkeypatch):
    jax.config.update("jax_compilation_cache_dir", None)
    called()
    assert programs(folder) == []


def test_a_folder_that_cannot_be_written_to_costs_nothing(folder):
    jax.config.update("jax_compilation_cache_dir", str(folder / "missing" / "\0"))
    called()
    assert TRACED == [2]
