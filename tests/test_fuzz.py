"""Damaged files of each kind that users bring: one sentence that names the file, or an answer, within 10 s and 2 GB each."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest

CHILD = Path(__file__).parent / "fuzz_child.py"


def _kinds():
    """The names of the kinds, without the libraries that their readers load."""
    table = next(
        node.value
        for node in ast.parse(CHILD.read_text()).body
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "KINDS"
    )
    return [key.value for key in table.keys]


# The first 50 of the 200 damaged files of each kind in the full check, all of them before a release.
@pytest.fixture(
    scope="module",
    params=[
        pytest.param(50, marks=pytest.mark.slow),
        pytest.param(200, marks=pytest.mark.release),
    ],
)
def faults(request, tmp_path_factory):
    """What went wrong with each kind. A process that dies of an input is started again with the kinds after it."""
    pytest.importorskip("safetensors")
    pytest.importorskip("gguf")
    found, left = {}, _kinds()
    while left:
        folder = tmp_path_factory.mktemp("fuzz")
        done = subprocess.run(
            [sys.executable, str(CHILD), str(folder), str(request.param), *left],
            capture_output=True,
            text=True,
            timeout=1200,
        )
        for line in done.stdout.splitlines():
            answer = json.loads(line)
            found[answer["kind"]] = answer["faults"]
        left = [name for name in left if name not in found]
        if left:
            found[left[0]] = [f"the process ended with {done.returncode}: {done.stderr[:1000]}"]
            left = left[1:]
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="memory is bounded as Linux counts it")
@pytest.mark.parametrize("kind", _kinds())
def test_damaged_files_end_in_a_sentence_or_an_answer(faults, kind):
    assert not faults[kind], "\n".join(faults[kind])
