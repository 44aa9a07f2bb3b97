"""Rows that fit beside a draft and without it, by hand and against published figures."""

import dataclasses

import numpy as np
import pytest

from sdsl_jax.codesign.concurrency import cache_room, concurrency
from sdsl_jax.codesign.serving_problem import build, fits
from sdsl_jax.config.problem_flags import load_problem
from sdsl_jax.theory.arrays import in_numpy
from sdsl_jax.theory.hardware import Precision
from sdsl_jax.theory.published_models import published_shape
from sdsl_jax.theory.serving import outcome


def problem(**sections):
    sections = {
        "target": {"params": 70e9},
        "draft": {"candidates": [8e9], "acceptance": 0.7},
        "hardware": {"devices": 4},
        "workload": {"context": 4096.0},
    } | sections
    return build(load_problem(None, sections))


def test_the_rows_are_the_most_that_fit():
    made = problem()
    serving, design = made.inputs.serving, made.inputs.fixed
    found = concurrency(made, design)
    assert found.row_tokens == 3968 + 256

    def held(rows):
        gives = outcome(*in_numpy((serving, design._replace(batch=float(rows)))))
        return fits(serving, float(gives.memory_bytes))

    assert held(found.with_draft.rows)
    assert not held(found.with_draft.rows + 1)
    assert 0 < found.with_draft.rows < found.without_draft.rows
    # The target alone, on 4 devices of which 72 GB each may be used.
    layers = (float(design.target_params) / 12e4) ** (1 / 3)
    a_token = 2 * 2 * layers * (100 * layers / 8)
    assert found.without_draft.cache_tokens == pytest.approx((4 * 72e9 - 140e9) / a_token, rel=1e-6)
    # At so many rows, by each lookahead that was looked at.
    full = design._replace(batch=float(found.with_draft.rows), lookahead=np.arange(1.0, 65.0))
    speeds = outcome(*in_numpy((serving, full))).tokens_per_second
    assert found.with_draft.tokens_per_second == speeds.max()
    assert speeds[found.with_draft.lookahead - 1] == speeds.max()
    assert found.without_draft.lookahead == 0


def test_a_draft_on_devices_of_its_own_takes_no_row_until_it_is_full():
    made = problem(
        hardware={"devices": 4, "overlapped": True}, draft={"candidates": [1e9], "acceptance": 0.7}
    )
    found = concurrency(made, made.inputs.fixed)
    assert found.with_draft.rows == found.without_draft.rows
    # 8B of 2 bytes leave 56 GB of one device, less than four leave beside the target.
    made = problem(hardware={"devices": 4, "overlapped": True})
    found = concurrency(made, made.inputs.fixed)
    assert found.with_draft.rows < found.without_draft.rows


def test_where_no_row_fits_there_is_no_throughput():
    made = problem(hardware={"devices": 1})
    found = concurrency(made, made.inputs.fixed)
    assert (found.with_draft.rows, found.with_draft.cache_tokens) == (0, 0)
    assert found.with_draft.tokens_per_second is found.without_draft.tokens_per_second is None
    unknown = made.inputs.serving.hardware._replace(memory_bytes=np.inf)
    serving = made.inputs.serving._replace(hardware=unknown)
    made = dataclasses.replace(made, inputs=made.inputs._replace(serving=serving))
    assert concurrency(made, made.inputs.fixed) is None


@pytest.mark.parametrize(
    ("target", "draft", "error"),
    [
        # Weights and caches of both in 16 bits: published is a larger loss than these bytes.
        (Precision(2.0, 2.0), Precision(2.0, 2.0), 0.320),
        # A target of 8 bits; its draft with weights of 8 bits, or of 16, and a cache of 16.
        (Precision(1.0, 1.0), Precision(1.0, 2.0), 0.027),
        (Precision(1.0, 1.0), Precision(2.0, 2.0), -0.082),
    ],
)
def test_a_published_loss_of_cache_tokens(target, draft, error):
    """Llama-3.1-70B had 513,696 cache tokens, and 251,472 with the 8B model beside it. The first
    figure gives the memory, bytes of the models the second, for precisions that were not stated."""
    large, small = published_shape("Llama-3.1-70B"), published_shape("Llama-3.1-8B")
    serving = problem().inputs.serving._replace(precision=target, draft_precision=draft)
    weights = float(large.total_params) * target.weight_bytes
    a_token = 2 * 80 * 1024 * target.cache_bytes
    needed = (weights + 513_696 * a_token) / 4 / 0.9
    serving = serving._replace(hardware=serving.hardware._replace(memory_bytes=needed))
    assert cache_room(serving, large) == pytest.approx(513_696, rel=1e-9)
    assert cache_room(serving, large, small) / 251_472 - 1 == pytest.approx(error, abs=0.001)
