"""`sdsl check`, on the samples of tests/measurement/server_reports."""

import json
from pathlib import Path

import pytest

from sdsl_jax.cli import check as command

FOLDER = Path(__file__).parents[1] / "measurement" / "server_reports"


def test_a_cliff_and_the_lookahead_before_it(sdsl):
    log = FOLDER / "vllm_log.txt"
    status, out, err = sdsl("check", log, "--cost", "0.05")
    assert (status, err) == (0, "")
    assert "vLLM: 12 log lines, γ = 4" in out
    assert "cliff at 4" in out
    assert "γ = 3 (90%: 3), speed-up 2.5" in out
    assert "assumed: a verify pass takes as long as one target step" in out
    answer = json.loads(sdsl("check", log, "--cost", "0.05", "--json")[1])
    assert answer["shape"]["cliff_at"] == 4
    assert answer["best_lookahead"]["lookahead_integer"] == 3
    assert [one["position"] for one in answer["positions"]] == [1, 2, 3, 4]
    assert answer["conventions"]["vllm_acceptance_rate"] == pytest.approx(
        answer["accepted"] / answer["drafted"]
    )


def test_offline_and_an_earlier_reading(sdsl):
    since = ("--since", FOLDER / "vllm_metrics_earlier.txt")
    status, out, _ = sdsl("check", FOLDER / "vllm_metrics.txt", *since, "--acceptance", "78%")
    assert status == 0
    assert "counters between the two readings" in out
    assert "17,993 rounds" in out
    assert "decaying, below what was measured offline" in out
    # The offline column: 0.78 at each of three positions.
    assert out.count("0.780 │\n") == 3


def test_records_of_a_study_are_compared_with(sdsl):
    records = Path(__file__).parents[2] / "paper_figures" / "records"
    pair = ("--draft", "draft-14k-12M-s0", "--target", "target-500k-12M-s0")
    status, out, _ = sdsl("check", FOLDER / "vllm_metrics.txt", "--records", records, *pair)
    assert status == 0
    assert "of draft-14k-12M-s0 on the target's samples" in out
    status, _, err = sdsl("check", FOLDER / "vllm_metrics.txt", "--records", records)
    assert status == 2
    assert "choose one by --draft and --target" in err


def test_means_without_positions_give_a_lookahead_from_one_acceptance(sdsl):
    status, out, _ = sdsl("check", FOLDER / "sglang_log.txt", "--cost", "0.05")
    assert status == 0
    assert "verdict     no acceptance by position" in out
    assert "beyond γ = 3 an extrapolation" in out
    status, out, _ = sdsl(
        "check", FOLDER / "llama_cpp_log_old.txt", "--lookahead", "4", "--cost", "0.2", "--json"
    )
    assert status == 0
    assert json.loads(out)["positions"] == []


def test_an_address_is_read_at_metrics(sdsl, monkeypatch):
    asked = []

    def fetch(url, path):
        asked.append((url, path))
        return (FOLDER / "llama_cpp_metrics.txt").read_text(), url + path

    monkeypatch.setattr(command, "fetch_text", fetch)
    status, out, _ = sdsl("check", "http://localhost:8080")
    assert (status, asked) == (0, [("http://localhost:8080", "/metrics")])
    assert "llama.cpp: counters since the server started, γ = 4" in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("nowhere.txt",), "the report nowhere.txt cannot be read (No such file or directory)."),
        (("http://127.0.0.1:1",), "http://127.0.0.1:1/metrics cannot be read"),
        ((FOLDER / "vllm_metrics.txt", "--verify-cost", "1.5"), "of no use without --cost"),
        ((FOLDER / "vllm_metrics.txt", "--cost", "0"), "must be positive"),
        ((FOLDER / "vllm_metrics.txt", "--cost", "0.1", "--verify-cost", "0.5"), "at least 1"),
        ((FOLDER / "vllm_metrics.txt", "--acceptance", "78"), "write it as a share: 0.78"),
        (
            (FOLDER / "vllm_metrics.txt", "--acceptance", "0.7", "--records", "."),
            "by --acceptance or --records",
        ),
        ((FOLDER / "vllm_metrics.txt", "--draft", "d"), "choose from --records"),
        ((FOLDER / "vllm_metrics.txt", "--lookahead", "2"), "counts 3 drafts per round"),
        ((FOLDER / "vllm_metrics.txt", "--lookahead", "7"), "the positions of 3 drafts per round"),
        (
            (FOLDER / "sglang_log.txt", "--lookahead", "7"),
            "--lookahead is 7, and the accept lengths",
        ),
        (
            (FOLDER / "vllm_log.txt", "--since", FOLDER / "vllm_log.txt"),
            "--since is for counters",
        ),
        ((FOLDER / "vllm_log.txt", "--model", "m"), "names no model"),
    ],
)
def test_wrong_input_is_one_sentence(sdsl, arguments, message):
    status, out, err = sdsl("check", *arguments)
    assert (status, out) == (2, "")
    assert message in err
    assert err.count("\n") == 1
