"""Addresses, flags and command lines of a state."""

import dataclasses
import shlex

import pytest

from sdsl_jax.config.codesign_problem import ProblemConfig
from sdsl_jax.config.problem_flags import ProblemFlags
from sdsl_jax.errors import SdslError
from sdsl_jax.explore.explorer import Explorer
from sdsl_jax.explore.state import MEASURED, State, command, written

FLAGS = {"target_params": "70B", "devices": 4, "batch": 8, "candidates": "125M,1.3B"}


@pytest.fixture(scope="module")
def choices():
    return Explorer.of_flags(FLAGS).choices


def typed(line: str) -> ProblemConfig:
    """The problem that a command line means, read as the command reads it."""
    words = shlex.split(line)
    assert words[:2] == ["sdsl", "codesign"]
    flags, words = {}, words[2:]
    while words:
        name = words.pop(0).removeprefix("--").replace("-", "_")
        flags[name] = True if not words or words[0].startswith("--") else words.pop(0)
    for name in ("devices",):
        if name in flags:
            flags[name] = int(flags[name])
    for name in ("weight_bytes",):
        if name in flags:
            flags[name] = float(flags[name])
    return ProblemFlags(**flags).config()


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"target_params": 7e9, "context": 512.0, "prefill": "elsewhere"},
        {"drafting": "overlapped", "weight_bytes": 1.0, "engine": "vllm-graphs"},
        {"acceptance_law": MEASURED, "acceptance": 0.62, "draft_params": 5e8},
        {"loss_law": "hoffmann", "hardware": "v5e", "devices": 8.0, "candidates": ()},
    ],
)
def test_addresses_and_commands_mean_the_state(choices, changes):
    state = dataclasses.replace(choices.start, **changes)
    assert choices.state(state.texts()) == state
    flags = choices.flags(state)
    assert typed(command(flags)) == ProblemFlags(**flags).config()


def test_what_an_address_leaves_out_is_as_at_the_start(choices):
    assert choices.state({}) == choices.start
    assert choices.start.candidates == (125e6, 1.3e9)
    assert choices.state({"batch": "64"}) == dataclasses.replace(choices.start, batch=64.0)


def test_an_engine_belongs_to_its_device(choices):
    state = choices.state({"hardware": "h100", "engine": "vllm-graphs"})
    assert state.engine == "vllm-graphs"
    assert choices.state({"hardware": "a100", "engine": "vllm-graphs"}).engine == ""


@pytest.mark.parametrize(
    ("texts", "named"),
    [
        ({"loss_law": "/etc/passwd"}, "Loss law"),
        ({"acceptance_law": "fits.json#x"}, "Acceptance"),
        ({"hardware": "../h100.toml"}, "Device"),
        ({"engine": "x.toml"}, "Serving engine"),
        ({"batch": "1e9"}, "Batch"),
        ({"batch": "7.5"}, "whole"),
        ({"devices": "1.5"}, "whole"),
        ({"batch": "nan"}, "Batch"),
        ({"target_params": "inf"}, "Target size"),
        ({"candidates": "125M,x"}, "Candidates"),
        ({"candidates": ",".join(["1B"] * 13)}, "Candidates"),
        ({"file": "/etc/passwd"}, "file"),
    ],
)
def test_an_address_can_name_only_what_the_page_offers(choices, texts, named):
    with pytest.raises(SdslError, match=named):
        choices.state(texts)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ({"hardware": "a100", "engine": "vllm-graphs"}, "no engine named"),
        ({"draft": "Qwen/Qwen3-0.6B"}, "--candidates"),
        ({"weight_bytes": 0.0}, "weight_bytes"),
        ({"objective": "latency_seconds"}, "objective"),
    ],
)
def test_what_no_page_can_show_is_refused(flags, message):
    with pytest.raises(SdslError, match=message):
        Explorer.of_flags(flags)


def test_values_survive_being_written():
    for value in (70e9, 54_666_123.0, 0.7, 0.5, 2048.0, (125e6, 1.3e9)):
        flags = State(candidates=value) if isinstance(value, tuple) else State(batch=value)
        assert written(value) in flags.texts().values()
    assert written(()) == ""
