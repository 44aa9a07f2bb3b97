"""Problems asked from Python, and drafts that are nearly as good as the best."""

import dataclasses
import inspect
import pydoc
import re
from pathlib import Path

import jax
import numpy as np
import pytest

from sdsl_jax.codesign.answer import Answer
from sdsl_jax.codesign.designs import round_design, sizes_within
from sdsl_jax.codesign.problem import Problem
from sdsl_jax.codesign.program import solve_together
from sdsl_jax.config.codesign_problem import OptimizerConfig
from sdsl_jax.errors import SdslError
from sdsl_jax.records.documents import schema_of
from sdsl_jax.statistics import Interval
from sdsl_jax.theory.serving import outcome


def test_flags_are_numbers_or_text_as_people_write_it():
    texts = Problem(
        target_params="70B",
        devices=4,
        candidates="125M,1.3B",
        objective="seconds_per_token,latency_seconds=0.5",
        constraint=("latency_seconds=9",),
        variables="draft_params, lookahead,batch",
        cache_bytes=1.0,
        prefill="elsewhere",
    )
    numbers = Problem(
        target_params=70e9,
        devices=4,
        candidates=[125e6, "1.3B"],
        objective={"seconds_per_token": 1, "latency_seconds": 0.5},
        constraint={"latency_seconds": 9},
        variables=["draft_params", "lookahead", "batch"],
        cache_bytes=1,
        prefill="elsewhere",
    )
    assert texts.config() == numbers.config()
    config = texts.config()
    assert (config.target.params, config.draft.candidates) == (70e9, (125e6, 1.3e9))
    assert config.target.cache_bytes == config.draft.cache_bytes == 1.0
    assert config.constraints.given() == {"latency_seconds": 9.0}
    assert repr(Problem(target_params="7B", devices=2)) == "Problem(target_params='7B', devices=2)"
    ranges = {"lookahead": (1, 8), "batch": "free"}
    asked = Problem(target_params=7e9, variables=ranges).config().variables.given()
    assert asked == {"lookahead": (1.0, 8.0), "batch": "free"}
    many = Problem(target_params=7e9, candidates=np.geomspace(1e8, 1e9, 3), hardware=Path("a.toml"))
    assert many.config().draft.candidates == pytest.approx((1e8, 10**8.5, 1e9))
    assert many.config().hardware.name == "a.toml"
    measured = Problem(target_params=7e9, candidates=1e8, acceptance=0.7).config()
    assert measured.draft.candidates == (1e8,)
    assert measured.draft.acceptance == 0.7
    found = Interval(0.7, 0.6, 0.8)  # as measure_pair gives it
    assert Problem(target_params=7e9, candidates=1e8, acceptance=found).config() == measured


def test_help_reads():
    """Every flag by name in the signature and explained below it, without how a command line reads it."""
    names = {f.name for f in dataclasses.fields(Problem)}
    signature = inspect.signature(Problem)
    assert {*signature.parameters} == names
    assert str(signature).startswith("(*, file=None, target_params=None, target_name=None,")
    page = pydoc.render_doc(Problem, renderer=pydoc.plaintext)
    assert "tyro" not in page
    assert "Annotated" not in page
    assert not [name for name in names if not re.search(rf"^ \|\s+{name}: \w", page, re.MULTILINE)]


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        ({}, "no size of the target was given; give --target-params"),
        (
            {"target_name": "Qwen/Qwen3-32B"},
            "no size of the target was given; give --target-params",
        ),
        ({"target_params": "many"}, "--target-params is 'many'"),
        ({"target_params": 70}, "did you mean 70B"),
        ({"target_params": 7e9, "devices": 0}, r"hardware.devices is 0"),
        ({"target_params": 7e9, "objective": {"speed": 1}}, "unknown key objective.speed"),
        ({"target_params": 7e9, "constraint": {"latency_seconds": -1}}, "it must be positive"),
        ({"target_params": 7e9, "candidates": [1e8], "acceptance": 1.0}, r"must lie in \(0, 1\)"),
        ({"target_params": 7e9, "acceptance": [0.6, 0.7]}, r"\[0.6, 0.7\]; .* solve once for each"),
        ({"target_params": 7e9, "acceptance": "0.6,0.7"}, "'0.6,0.7'; .* solve once for each"),
        ({"target_params": 7e9, "acceptance": 0.7}, "with no candidates; .* the only candidate.$"),
        (
            {"target_params": 7e9, "candidates": [1e8, 1e9], "acceptance": 0.7},
            "with 2 candidates; .* solve once for each",
        ),
    ],
)
def test_what_is_refused_is_one_sentence(flags, words):
    with pytest.raises(SdslError, match=words) as error:
        Problem(**flags).config()
    assert "\n" not in str(error.value)


def test_flags_override_a_file(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text('[target]\nparams = "7B"\n[hardware]\ndevices = 2\n')
    config = Problem.from_file(file, devices=4).config()
    assert (config.target.params, config.hardware.devices) == (7e9, 4)


def every_key(schema):
    for key, entry in schema.items():
        yield key, entry["description"]
        yield from every_key(entry.get("keys", {}))


def test_every_key_of_an_answer_has_a_meaning():
    schema = schema_of(Answer)
    assert [key for key, meaning in every_key(schema) if not meaning] == []
    # What programs that read the JSON rely on.
    assert set(schema) >= {
        "speculate", "variables", "design", "objective", "baseline", "speedup", "decode_speedup",
        "prefill_load", "acceptance", "tokens_per_round", "lookahead", "cost_breakdown",
        "hardware_measured", "assumed_overhead_share", "tokens_per_second", "first_token_seconds",
        "latency_seconds", "memory", "cost_per_million_tokens", "training_cost", "total_cost",
        "draft_loss", "target_loss", "binding_constraints", "feasible", "kkt_residual",
        "starts_agreeing", "interval_90", "interval_basis", "share_of_draws_that_speculate",
        "share_of_draws_left_out", "sensitivities", "rounded", "pareto", "break_even", "candidates",
        "engine_settings", "nearest_published", "would_be_feasible_with", "warnings",
        "warning_severities",
    }  # fmt: skip


@pytest.mark.slow
def test_an_answer_from_python(tmp_path):
    light = tmp_path / "light.toml"
    light.write_text("[optimizer]\nstarts = 4\nsteps = 60\nrounds = 6\n")
    problem = Problem.from_file(light, target_params="70B", devices=4, batch=8, context=4096)
    answer = problem.solve()
    assert isinstance(answer, Answer)
    assert repr(answer).startswith("<Answer: Speculate: a draft of ")
    assert len(repr(answer)) < 200
    assert "<table>" in answer._repr_html_()
    assert answer.to_json()["rounded"]["lookahead"] == answer.rounded.lookahead == 5
    seen = problem.landscape(answer)
    assert seen.lost.min() == pytest.approx(0, abs=1e-3)
    assert seen.speedup.max() == pytest.approx(answer.speedup, rel=1e-3)


@pytest.mark.slow
def test_sizes_that_are_nearly_as_good(x64):
    """At either end of the range, with the best whole lookahead there, the loss is what was asked for."""
    problem = Problem(target_params="7B", variables="draft_params,lookahead", prefill="elsewhere")
    ready = problem.ready
    program, inputs = ready.program, ready.inputs
    light = OptimizerConfig(starts=4, steps=60)
    (solved,) = solve_together(program, [inputs], light)
    best = round_design(program, inputs, solved).solved
    one, five = (
        [ready.sizes.non_embedding(end, "draft") for end in ends]
        for ends in sizes_within(ready, best, (0.01, 0.05))
    )
    assert five[0] <= one[0] < float(best.design.draft_params) < one[1] < five[1]
    lowest = float(inputs.lower.draft_params)
    for ends, loss in ((one, 0.01), (five, 0.05)):
        for end in ends:
            every = jax.vmap(
                lambda g, end=end: (
                    outcome(
                        inputs.serving, best.design._replace(draft_params=end, lookahead=g)
                    ).speedup
                )
            )(np.arange(1.0, 33.0))
            lost = 1 - float(every.max()) / float(best.outcome.speedup)
            assert lost == pytest.approx(loss, rel=0.02) or (
                end == pytest.approx(lowest) and lost < loss
            )
