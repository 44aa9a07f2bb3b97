import math

import pytest

from sdsl_jax.records import ModelRecord
from sdsl_jax.training.metrics import utilisation


def _record(device, **changes):
    given = (
        dict(flops_per_token=2e8, train_seconds=110.0, compile_seconds=10.0, device=device)
        | changes
    )
    return ModelRecord("draft", "draft", 10**8, 10**8, 10**8, 0, 2.0, math.exp(2.0), **given)


@pytest.mark.parametrize(
    ("device", "share"),
    [
        ("1 x NVIDIA H100 80GB HBM3", 6e14 / 989e12),
        ("4 x NVIDIA A100-SXM4-80GB", 6e14 / (4 * 312e12)),
        ("8 x TPU v5 lite", 6e14 / (8 * 197e12)),
        ("8 x TPU v6 lite", 6e14 / (8 * 918e12)),
        ("1 x cpu, 2 cores", math.nan),
        ("", math.nan),
    ],
)
def test_share_of_the_peak(device, share):
    """1e6 tokens/s of 3 · 2e8 FLOPs each."""
    used = utilisation(_record(device))
    assert used.flops_per_second == pytest.approx(6e14)
    assert used.share == pytest.approx(share, nan_ok=True)


def test_a_record_without_time_has_none():
    used = utilisation(_record("1 x NVIDIA H100 80GB HBM3", train_seconds=math.nan))
    assert math.isnan(used.flops_per_second)
    assert math.isnan(used.share)
