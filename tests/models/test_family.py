import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdsl_jax.config import FamilyConfig
from sdsl_jax.errors import SdslError
from sdsl_jax.models import count, member, shape_rule
from sdsl_jax.theory import flops_per_token, layers_and_width


@given(st.floats(np.log(500), np.log(1e11)))
def test_every_size_is_met_within_ten_percent(log_size):
    size = round(np.exp(log_size))
    config = member(FamilyConfig(), size, 256)
    assert count(config, 0).nonembedding == pytest.approx(size, rel=0.1)
    assert config.width == config.heads * config.head_dim


@given(st.floats(np.log(2_000), np.log(1e10)), st.sampled_from([16.0, 32.0, 64.0]))
def test_the_smooth_cost_follows_the_members(log_size, aspect):
    """FLOPs per token of the shape rule against those of the rounded member: at most 25% off where a width of 8 rounds most."""
    family = FamilyConfig(aspect_ratio=aspect)
    config = member(family, round(np.exp(log_size)), 256)
    exact = count(config, 64)
    smooth = float(flops_per_token(float(exact.nonembedding), shape_rule(family, 256, 128)))
    assert smooth == pytest.approx(
        exact.flops_per_token, rel=0.25 if exact.nonembedding < 50_000 else 0.12
    )


def test_shape_rule_keeps_the_aspect_ratio_of_large_models_and_one_layer_of_small_ones():
    layers, width = layers_and_width(1e9, shape_rule(FamilyConfig(aspect_ratio=32), 256, 128))
    assert float(width / layers) == pytest.approx(32, rel=1e-3)
    assert float(12 * layers * width**2) == pytest.approx(1e9, rel=1e-5)
    assert float(layers_and_width(500.0, shape_rule(FamilyConfig(), 256, 128))[0]) == pytest.approx(
        1, rel=1e-2
    )


def test_a_size_below_the_smallest_member_is_refused():
    with pytest.raises(SdslError, match=r"cannot make a model of 100 .*sizes from about 500 up"):
        member(FamilyConfig(), 100, 256)


def test_grouped_queries_share_keys():
    config = member(FamilyConfig(kv_groups=4), 1_000_000, 256)
    assert config.heads % config.kv_heads == 0
    assert config.kv_heads < config.heads


def test_the_least_layers():
    family = FamilyConfig(aspect_ratio=32, min_layers=2)
    depths = [member(family, size, 256).layers for size in (6_000, 160_000, 330_000, 2_500_000)]
    assert depths == [2, 2, 3, 6]
    assert depths[2:] == [member(FamilyConfig(), size, 256).layers for size in (330_000, 2_500_000)]
    layers, width = layers_and_width(2_000.0, shape_rule(family, 256, 128))
    assert float(layers) == pytest.approx(2, rel=1e-3)
    assert float(12 * layers * width**2) == pytest.approx(2_000, rel=1e-5)
    with pytest.raises(SdslError, match=r"cannot make a model of 600 .*sizes from about 1000 up"):
        member(family, 600, 256)
