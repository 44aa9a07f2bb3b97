import numpy as np
import pytest

from sdsl_jax.cli.arguments import _whole
from sdsl_jax.config import FitConfig
from sdsl_jax.counts import (
    parse_count,
    parse_counts,
    parse_size,
    parse_sizes,
    read_count,
    short_count,
)
from sdsl_jax.decoding import Sampling
from sdsl_jax.errors import SdslError
from sdsl_jax.ranges import share_hint


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("125M", 125e6),
        ("4.2B", 4.2e9),
        ("0.57b", 570_000_000),
        ("1e9", 1e9),
        ("13,000,000,000", 13e9),
        ("1,000.5", 1000.5),
        ("40 M", 40e6),
        ("1_000k", 1e6),
        (" .5T ", 5e11),
        ("0,125", None),  # a decimal comma
        ("1,300M", None),  # 1.3 or 1,300 millions
        ("13,00", None),
        ("13.000.000", None),
        ("", None),
        ("M", None),
        ("nan", None),
        ("inf", None),
        ("1e9e9", None),
    ],
)
def test_one_reader_of_counts(text, value):
    assert read_count(text) == value


def test_short_counts_are_read_back():
    for value in np.random.default_rng(0).uniform(3, 14, 200):
        assert read_count(short_count(10**value)) == pytest.approx(10**value, rel=0.006)


def test_a_long_cell_is_read_in_no_time():
    assert read_count("1" * 100_000 + "x") is None


@pytest.mark.parametrize("text", ["0", "-3", "1e400", "2e18"])
def test_a_count_is_positive_and_within_reason(text):
    with pytest.raises(SdslError, match=r"--x is .*; it must be positive, and at most 1e\+18"):
        parse_count(text, "--x")


def test_lists_do_not_take_thousands_for_values():
    assert parse_counts("125M, 1.3B,", "--x") == [125e6, 1.3e9]
    with pytest.raises(SdslError, match="write 13M for one number"):
        parse_counts("13,000,000", "--x")
    with pytest.raises(SdslError, match="write 13000001 for one number"):
        parse_counts("13,000,001", "--x")
    with pytest.raises(SdslError, match="commas separate the values of a list"):
        parse_counts("13,000,000,1.3B", "--x")


def test_a_size_without_its_suffix_is_recognised():
    assert parse_size("13,000,000,000", "--target-params") == 13e9
    with pytest.raises(SdslError, match=r"--target-params is 70, .* did you mean 70B\?"):
        parse_size("70", "--target-params")
    with pytest.raises(SdslError, match=r"did you mean 70B\?"):
        parse_sizes("13B,70", "--target-params")


def test_per_cent():
    assert share_hint(70.7) == "; write it as a share: 0.707"
    assert share_hint(-1) == share_hint(0.7) == share_hint(700) == ""


def test_whole_counts_of_the_command_line():
    assert [_whole([text]) for text in ("96", "4k", "4,096", "1e3")] == [96, 4000, 4096, 1000]
    for text in ("1.5", "many", ""):
        with pytest.raises(ValueError, match="is no whole number such as 4096"):
            _whole([text])


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: FitConfig(confidence=90.0),
            "fit.confidence is 90.0; it must lie in (0, 1); write it as a share: 0.9.",
        ),
        (
            lambda: Sampling(top_p=95.0).check(),
            "top_p is 95.0; it must lie in (0, 1]; write it as a share: 0.95.",
        ),
        (lambda: Sampling(min_p=2.0).check(), "min_p is 2.0; it must lie in [0, 1]."),
    ],
)
def test_shares_in_per_cent_are_recognised_wherever_one_is_meant(make, words):
    with pytest.raises(SdslError) as error:
        make()
    assert str(error.value) == words
