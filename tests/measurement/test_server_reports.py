"""What servers print, read back as the counts behind it. The files in server_reports/ are written in the
formats of vLLM 0.32 (counters of two engines and their earlier reading; log), SGLang 0.5 (gauges,
counters, log), SGLang of 2025 (old log) and llama.cpp (counters of autumn 2026; logs of 2025, of May
2026 with rates in the line, and of autumn 2026 with rates in a line behind)."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sdsl_jax.errors import SdslError
from sdsl_jax.measurement.server_counts import counts_of_rates
from sdsl_jax.measurement.server_reports import read_report

FOLDER = Path(__file__).parent / "server_reports"


def text(name):
    return (FOLDER / name).read_text()


def read(name, **options):
    return read_report(text(name), name, **options)


def test_counters_of_the_engines_of_a_model_are_added():
    report = read("vllm_metrics.txt")
    assert (report.server, report.model, report.lookahead) == ("vLLM", "Qwen/Qwen3-8B", 3)
    assert report.rounds == 13331 + 12860
    assert report.survived == (10406 + 9950, 7402 + 7189, 4919 + 4738)
    assert report.drafted == 3 * report.rounds
    assert report.not_drafted == (0, 0, 0)
    assert report.tokens_per_round == 1 + sum(report.survived) / report.rounds


def test_an_earlier_reading_is_subtracted():
    earlier = text("vllm_metrics_earlier.txt"), "before"
    report = read("vllm_metrics.txt", since=earlier)
    assert report.rounds == 9120 + 8873
    assert report.accepted == sum(report.survived)
    with pytest.raises(SdslError, match=r"fell from 13,331 .* to 4,211 .* restarted"):
        read_report(*earlier, since=(text("vllm_metrics.txt"), "after"))
    other = earlier[0].replace('engine="1"', 'engine="2"'), "before"
    with pytest.raises(SdslError, match=r"before lacks the counter drafts of line 8"):
        read("vllm_metrics.txt", since=other)


def test_models_are_not_mixed():
    two = text("vllm_metrics.txt").replace(
        'engine="1",model_name="Qwen/Qwen3-8B"', 'engine="1",model_name="b"'
    )
    with pytest.raises(SdslError, match=r"several models \(Qwen/Qwen3-8B, b\).*--model"):
        read_report(two, "r")
    assert read_report(two, "r", model="b").rounds == 12860
    with pytest.raises(SdslError, match=r"--model is 'c'"):
        read_report(two, "r", model="c")


LLAMA = (982, (898, 754, 544, 316))


@pytest.mark.parametrize(
    "name", ["llama_cpp_metrics.txt", "llama_cpp_log_inline.txt", "llama_cpp_log_trace.txt"]
)
def test_llama_cpp_tells_the_same_in_every_format(name):
    report = read(name)
    assert report.server == "llama.cpp"
    assert (report.rounds, report.survived) == LLAMA
    assert report.convention == "vllm_position"


def test_statistics_of_llama_cpp_count_since_the_start_of_the_server():
    log = text("llama_cpp_log_inline.txt")
    lines = [line for line in log.splitlines() if "statistics" in line]
    assert read_report(log, "r", model="draft-mtp").rounds == 982
    once = read_report("\n".join(lines), "r")
    assert (once.rounds, once.survived, once.model) == (*LLAMA, "draft-mtp")
    # A restart begins at 0 again: both runs count.
    assert read_report("\n".join(lines * 2), "r").rounds == 2 * 982
    others = [line.replace("draft-mtp", "ngram-mod") for line in lines]
    with pytest.raises(SdslError, match=r"drafters draft-mtp, ngram-mod; choose one by --model"):
        read_report("\n".join(lines + others), "r")


def test_a_log_without_positions_needs_the_lookahead():
    with pytest.raises(SdslError, match=r"line 2 does not tell how many rounds .* --lookahead"):
        read("llama_cpp_log_old.txt")
    report = read("llama_cpp_log_old.txt", lookahead=4)
    assert (report.rounds, report.accepted, report.survived) == (982, sum(LLAMA[1]), ())
    # Mean lengths tell the rounds, to within their two digits.
    mean = text("llama_cpp_log_trace.txt").splitlines()
    report = read_report("\n".join(line for line in mean if "per pos" not in line), "r")
    assert report.lookahead == 4
    assert report.rounds == pytest.approx(982, rel=0.005)


def test_lines_of_vllm_are_added_with_their_intervals():
    report = read("vllm_log.txt")
    assert report.intervals.shape == (12, 5)
    assert report.rounds == report.intervals[:, 0].sum()
    assert report.drafted == 4 * report.rounds
    assert sum(report.survived) == report.accepted


def test_sglang_tells_means_and_two_conventions_of_its_rate():
    new, old = read("sglang_log.txt"), read("sglang_old_log.txt")
    assert (new.lookahead, new.convention) == (3, "vllm_acceptance_rate")
    assert (old.lookahead, old.convention) == (4, "sglang_old_accept_rate")
    # Weighted by the running requests: 4, 5, 5 and 3.
    mean = np.average([3.31, 3.02, 3.47, 2.86], weights=[4, 5, 5, 3])
    assert old.tokens_per_round == pytest.approx(mean)
    assert old.tokens_error > 0
    bare = text("sglang_log.txt").replace("accept rate", "other")
    with pytest.raises(SdslError, match=r"does not tell the lookahead; give --lookahead"):
        read_report(bare, "r")
    assert read_report(bare, "r", lookahead=3).tokens_per_round == new.tokens_per_round


def test_counters_of_sglang_count_verify_passes():
    report = read("sglang_metrics.txt")
    assert (report.rounds, report.lookahead) == (51233, 3)
    # The first token of each of the 412 requests comes from its prompt.
    generated = int(text("sglang_metrics.txt").split("generation_tokens_total{")[1].split()[1][:-2])
    assert report.tokens_per_round == pytest.approx((generated - 412) / 51233)
    gauges = "\n".join(
        line for line in text("sglang_metrics.txt").splitlines() if "_total{" not in line
    )
    alone = read_report(gauges, "r")
    assert (alone.rounds, alone.convention) == (None, "vllm_acceptance_rate")
    assert alone.tokens_per_round == pytest.approx(2.6458333)
    tree = gauges.replace('tp_rank="0"} 4.0', 'tp_rank="0"} 8.0')
    with pytest.raises(
        SdslError, match="8 draft tokens in 3 steps, which is a tree of drafts unless"
    ):
        read_report(tree, "r")


@given(
    st.integers(1, 900),
    st.lists(st.floats(0, 1), min_size=1, max_size=8),
    st.integers(0, 2**32 - 1),
)
def test_printed_rates_give_back_the_counts(rounds, shares, seed):
    """Three digits determine whole numbers of up to 1,000 rounds, where each drafted γ."""
    random, survived = np.random.default_rng(seed), []
    for share in shares:
        survived.append(int(random.binomial(survived[-1] if survived else rounds, share)))
    rates = [float(f"{n / rounds:.3f}") for n in survived]
    counts = counts_of_rates(sum(survived), rounds * len(rates), rates, "line 1")
    assert counts.rounds == rounds
    assert counts.survived == tuple(survived)


def test_rounds_that_drafted_less_are_recovered_from_rates():
    counts = counts_of_rates(92, 250, [0.757, 0.622, 0.432, 0.324, 0.189, 0.108, 0.054], "line 1")
    assert (counts.rounds, sum(counts.survived)) == (37, 92)


def test_drafts_that_were_not_proposed_bound_the_tests():
    page = text("vllm_metrics.txt")
    short = page.replace(
        'draft_tokens_total{engine="0",model_name="Qwen/Qwen3-8B"} 39993.0',
        'draft_tokens_total{engine="0",model_name="Qwen/Qwen3-8B"} 39893.0',
    )
    assert short != page
    # 100 drafts are missing: all at position 3, or half at each of 2 and 3.
    assert read_report(short, "r").not_drafted == (0, 50, 100)
    at = "".join(
        f'vllm:spec_decode_num_draft_tokens_per_pos_total{{model_name="Qwen/Qwen3-8B",engine="{e}",position="{k}"}} {n}\n'
        for e, counts in ((0, (13331, 13311, 13251)), (1, (12860, 12860, 12860)))
        for k, n in enumerate(counts)
    )
    assert read_report(short + at, "r").not_drafted == (0, 20, 80)


def replaced(name, old, new, count=1):
    page = text(name)
    assert old in page
    return page.replace(old, new, count)


@pytest.mark.parametrize(
    ("page", "message"),
    [
        ("", "r holds no figures of speculative decoding"),
        ("vllm:num_requests_running 3\n", "metrics of vLLM but none of speculative decoding"),
        (
            replaced("vllm_metrics.txt", "13331.0", "many"),
            r"r, line 7 is no sample of Prometheus text: '.*many'",
        ),
        (replaced("vllm_metrics.txt", "13331.0", "NaN"), "r, line 7 has the value nan"),
        (replaced("vllm_metrics.txt", "13331.0", "13331.5"), "r, line 7 .* whole number"),
        (replaced("vllm_metrics.txt", 'position="2"', 'position="x"'), "has the position 'x'"),
        (replaced("vllm_metrics.txt", 'position="1"', 'position="7"', 2), "without a gap"),
        (replaced("vllm_metrics.txt", "10406.0", "99999.0"), "there cannot be more"),
        (replaced("vllm_metrics.txt", "} 22727.0", "} 12727.0"), "both must be the same"),
        (text("vllm_metrics.txt") * 2, "r, line 35 repeats a sample of line 7"),
        (text("vllm_metrics.txt") + text("sglang_log.txt"), "mixes reports of SGLang and vLLM"),
        (text("vllm_metrics.txt") + text("vllm_log.txt"), "both counters and log lines of vLLM"),
        ("vllm:spec_decode_num_drafts_total 0\n", "lacks the counter spec_decode_num_draft_tokens"),
        (
            "".join(
                f"vllm:spec_decode_num_{name}_total 0\n"
                for name in ("drafts", "draft_tokens", "accepted_tokens")
            ),
            "has drafted nothing",
        ),
        (
            replaced("vllm_log.txt", "Per-position acceptance rate", "Per-pos"),
            "r, line 2 has no Per-position acceptance rate",
        ),
        (
            replaced("vllm_log.txt", "Accepted: ", "Accepted: 1"),
            "r, line 2 has 1.* of .* drafts accepted and rates",
        ),
        (
            replaced("sglang_log.txt", "accept len: 2", "accept len: x2"),
            "r, line 1 is cut: a Decode batch line",
        ),
        (replaced("llama_cpp_log_inline.txt", "accepted /", "/"), "r, line 2 is cut"),
        (replaced("llama_cpp_log_inline.txt", "#gen tokens", "#gen", 9), None),
    ],
)
def test_what_cannot_be_is_one_sentence_with_its_line(page, message):
    if message is None:
        assert read_report(page, "r").rounds == 982
        return
    with pytest.raises(SdslError, match=message) as caught:
        read_report(page, "r")
    assert "\n" not in str(caught.value)
