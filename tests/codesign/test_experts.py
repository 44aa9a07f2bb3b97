"""Targets that are mixtures of experts: their sizes, and speculation beside their dense twin."""

import numpy as np
import pytest

from sdsl_jax.codesign.break_even import PayingBatches
from sdsl_jax.codesign.caveats import _of_the_experts, _of_the_overlap, _stated
from sdsl_jax.codesign.experts import dense_twin, mixture_of_experts
from sdsl_jax.codesign.serving_problem import build, memory
from sdsl_jax.config.problem_flags import load_problem
from sdsl_jax.errors import SdslError
from sdsl_jax.theory.arrays import in_numpy
from sdsl_jax.theory.serving import outcome, shapes

SPARSE = {"params": 235e9, "experts": 128, "active_experts": 8}


def problem(target=SPARSE, **sections):
    # Prompts are read elsewhere: prefill would hide how costs of decoding differ.
    sections = {"hardware": {"devices": 8}, "workload": {"prefill": "elsewhere"}} | sections
    return build(load_problem(None, {"target": target, **sections}))


@pytest.fixture(scope="module")
def made():
    return problem()


def test_the_size_is_that_of_all_experts(made):
    design = made.inputs.fixed
    assert made.sizes.stated(design, "target_params") == pytest.approx(235e9, rel=1e-9)
    target = shapes(*in_numpy((made.inputs.serving, design)))[1]
    # A third of a block is attention, and the MLP is there 16 times.
    active = float(design.target_params) / (1 / 3 + 2 / 3 * 16)
    assert float(target.active_params) == pytest.approx(active, rel=1e-9)
    weights = memory(made.inputs.serving, design._replace(batch=1e-9)).target_bytes
    assert weights == pytest.approx(2 * 235e9, rel=1e-9)


def test_what_the_laws_take_it_for_is_said(made):
    text = _of_the_experts(made, made.inputs.fixed)[0]
    # √(235 · 22.7) = 73.0
    assert "counts as one of 73B parameters, the geometric mean of all 235B and the 22.7B" in text
    assert _stated(made, made.inputs.fixed)["target"]["params"] == pytest.approx(73e9, rel=2e-3)
    dense = problem({"params": 70e9})
    assert _of_the_experts(dense, dense.inputs.fixed) == []


def test_the_twin_is_the_dense_model_of_the_active_parameters(made):
    given = in_numpy((made.inputs.serving, made.inputs.fixed))
    mixture, twin = shapes(*given)[1], shapes(*dense_twin(*given))[1]
    assert float(twin.params) == pytest.approx(float(mixture.active_params), rel=1e-12)
    assert [float(twin.layers), float(twin.width)] == pytest.approx(
        [float(mixture.layers), float(mixture.width)], rel=1e-12
    )
    assert twin.read_params(np.float64(9.0)) == twin.params


def test_medium_batches_pay_more_for_a_mixture(made):
    """A verify pass reads more experts than a step of few rows, and of many rows no more than it: the
    mixture loses against its twin at small batches and wins at medium ones, as published
    (2505.19645)."""
    found = mixture_of_experts(made, made.inputs.fixed, 0.7)
    rows = {row.batch: row for row in found.by_batch}
    assert rows[1].speedup < rows[1].dense_speedup
    assert rows[4].speedup < rows[1].speedup
    assert rows[64].speedup > rows[64].dense_speedup
    assert rows[64].speedup > rows[4].speedup
    assert rows[1].step_experts == pytest.approx(8)
    assert rows[64].verify_experts / rows[64].step_experts < 1.02
    # Each is the best of brute force over whole lookaheads.
    given = in_numpy((made.inputs.serving, made.inputs.fixed))
    alone = outcome(given[0], given[1]._replace(batch=np.float64(4), lookahead=np.arange(1.0, 33)))
    same = mixture_of_experts(made, made.inputs.fixed, float(alone.acceptance))
    assert {row.batch: row.speedup for row in same.by_batch}[4] == pytest.approx(
        alone.speedup.max(), rel=1e-9
    )


def test_a_dense_target_has_no_twin():
    dense = problem({"params": 70e9})
    assert mixture_of_experts(dense, dense.inputs.fixed, 0.7) is None


@pytest.mark.parametrize(
    ("pays", "words"),
    [
        ([0, 0, 0, 0], "no batch up to 8"),
        ([1, 1, 1, 1], "every batch up to 8"),
        ([1, 1, 0, 0], "batches up to 2"),
        ([0, 1, 1, 1], "batches from 2 on, as far as 8"),
        ([1, 0, 1, 0], "batches up to 4, though not at all of them"),
    ],
)
def test_batches_that_pay(pays, words):
    batches = np.asarray([1.0, 2.0, 4.0, 8.0])
    assert PayingBatches.of(batches, np.asarray(pays, bool)).batches == words


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"target": {"params": 7e9, "experts": 8}}, "target.active_experts was not given"),
        (
            {"target": {"params": 7e9, "experts": 8, "active_experts": 9}},
            r"target.active_experts is 9; it must lie in \[1, 8\]",
        ),
        ({"objective": {"joules_per_token": 1.0}, "hardware": {"name": "v5e"}}, "give --watts"),
        ({"hardware": {"overlapped": 1}}, "hardware.overlapped is 1; it must be true or false"),
    ],
)
def test_what_is_refused_is_one_sentence(sections, words):
    with pytest.raises(SdslError, match=words) as error:
        build(load_problem(None, {"target": {"params": 7e9}} | sections))
    assert "\n" not in str(error.value)


def test_overlapped_drafting_is_said_to_be_a_bound():
    """With α = 0.7 and γ = 2 a single guess is right in 0.7³ = 34% of the rounds."""
    made = problem(
        {"params": 70e9},
        hardware={"devices": 4, "overlapped": True},
        draft={"candidates": [8e9], "acceptance": 0.7},
    )
    assert float(made.inputs.serving.draft_devices) == 1
    gives = outcome(*in_numpy((made.inputs.serving, made.inputs.fixed._replace(lookahead=2.0))))
    bound, devices = _of_the_overlap(made, gives, 2.0)
    assert "S is an upper bound" in bound
    assert "α^3 = 34%" in bound
    single = float(bound.rpartition(" ")[2])
    in_turn = float(gives.tokens_per_round * gives.step_seconds) / float(
        gives.round._replace(overlap=0.0).seconds
    )
    assert in_turn < single < float(gives.decode_speedup)
    assert "on its 4 devices; the draft has 1 more" in devices
