import subprocess
import sys

import pytest

_SHOW = """
import os, sys
sys.argv[0] = "sdsl"
from sdsl_jax.cli.memory import use_huge_pages
use_huge_pages()
print(os.environ.get("GLIBC_TUNABLES"), sys.argv[1:])
"""


def _run(code, environment):
    done = subprocess.run(
        [sys.executable, "-c", code, "study", "a b.toml"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.strip()


@pytest.mark.skipif(sys.platform != "linux", reason="the C library's settings are those of Linux")
def test_the_command_starts_again_once_with_large_pages_and_its_arguments():
    found = _run(_SHOW, {})
    assert "glibc.malloc.hugetlb=1" in found
    assert found.endswith("['study', 'a b.toml']")
    assert found.count("study") == 1


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({"SDSL_NO_HUGE_PAGES": "1"}, "None"), ({"GLIBC_TUNABLES": "x=1"}, "x=1")],
)
def test_it_leaves_what_the_user_has_set(environment, expected):
    assert _run(_SHOW, environment).startswith(expected)


def test_a_process_that_has_imported_jax_goes_on():
    assert _run(
        "import sys, types; sys.modules['jax'] = types.ModuleType('jax')" + _SHOW, {}
    ).startswith("None")
