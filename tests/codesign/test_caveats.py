"""What is said about links and heads."""

from types import SimpleNamespace

import pytest

from sdsl_jax.codesign.caveats import _of_the_workload, of_the_device
from sdsl_jax.codesign.serving_problem import build
from sdsl_jax.config.problem_flags import load_problem


@pytest.mark.parametrize(("devices", "draft_devices"), [(1, 1), (8, 1), (8, 8)])
def test_links_are_assumed_and_heads_are_whole(devices, draft_devices):
    sections = {
        "target": {"params": 70e9},
        "hardware": {"devices": devices},
        "draft": {"devices": draft_devices},
    }
    made = build(load_problem(None, sections))
    # 12·l·w² = 1e7 with w = 64·l: 5.9 layers, 376 wide, 5 whole heads.
    found = of_the_device(made, 376.0)
    assert any("latency of links between devices of h100 is assumed, 2 µs" in w for w in found) == (
        devices > 1
    )
    assert any("has 5 heads of 64, fewer than its 8 devices" in w for w in found) == (
        draft_devices == 8
    )


@pytest.mark.parametrize(
    ("context", "prompt", "words"),
    [
        (1000, 2000, "are longer than the mean context"),
        (4000, 1000, "is longer than prompts of 1000"),
        (1128, 1000, None),
    ],
)
def test_contexts_and_prompts_that_contradict_each_other(context, prompt, words):
    sections = {
        "target": {"params": 7e9},
        "workload": {"context": context, "prompt_tokens": prompt},
    }
    found = _of_the_workload(build(load_problem(None, sections)), SimpleNamespace(prefill_load=0.0))
    assert [words in text for text in found] == ([True] if words else [])
