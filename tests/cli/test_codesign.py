"""`sdsl codesign`: one compiled program serves all problems of this file, which differ in their numbers alone."""

import itertools
import json
import re
from types import SimpleNamespace

import pytest

from sdsl_jax.cli.codesign_report import _as_good, _front, _rounded_heading
from sdsl_jax.codesign.answer import Answer, PayingRegion
from sdsl_jax.codesign.serving_problem import Size
from sdsl_jax.records.documents import from_json

OPTIMIZER = "[optimizer]\nstarts = 4\nsteps = 60\nrounds = 6\n"


@pytest.fixture
def sdsl(sdsl, tmp_path, monkeypatch):
    """Runs `sdsl codesign` with a light optimiser."""
    (tmp_path / "light.toml").write_text(OPTIMIZER)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: sdsl("codesign", "light.toml", *arguments)


ON_FOUR = (
    "--target-params",
    "70e9",
    "--hardware",
    "h100",
    "--devices",
    "4",
    "--batch",
    "8",
    "--context",
    "4096",
)
LIMIT = ("--constraint", "latency_seconds=9")


@pytest.mark.slow
def test_fields_and_what_they_hold(sdsl):
    status, out, _ = sdsl(*ON_FOUR, *LIMIT, "--candidates", "125M,1.3B", "--json")
    assert status == 0
    found = json.loads(out)
    assert from_json(Answer, found, "the answer").to_json() == found
    assert found["speculate"] is True
    assert found["kkt_residual"] < 1e-6
    assert found["binding_constraints"] == []
    assert found["interval_90"] is None
    assert "no covariance" in found["interval_basis"]
    assert found["cost_per_million_tokens"] is None
    parts = found["cost_breakdown"]
    assert sum(part["share"] for part in parts.values()) == pytest.approx(1)
    assert found["speedup"] == pytest.approx(1.659, abs=0.005)
    assert found["decode_speedup"] == pytest.approx(2.138, abs=0.005)
    assert found["prefill_load"] == pytest.approx(0.43, abs=0.01)
    assert 0 < found["assumed_overhead_share"] < 1
    alone = found["baseline"]
    assert alone["tokens_per_second"] * found["speedup"] == pytest.approx(
        found["tokens_per_second"]
    )
    assert alone["latency_seconds"] > found["latency_seconds"]
    assert alone["cost_per_million_tokens"] is None
    assert alone["joules_per_token"] / found["joules_per_token"] == pytest.approx(found["speedup"])
    assert found["joules_per_token"] * found["tokens_per_second"] == pytest.approx(4 * 700)
    assert alone["output_token_seconds"] > found["output_token_seconds"]
    assert (
        found["concurrency"]["with_draft"]["rows"] < found["concurrency"]["without_draft"]["rows"]
    )
    assert found["mixture_of_experts"] is None
    seconds = sum(part["seconds"] for part in parts.values())
    assert found["tokens_per_second"] == pytest.approx(
        (1 - found["prefill_load"]) * 8 * found["tokens_per_round"] / seconds
    )
    assert (found["memory"]["fits"], found["memory"]["smallest_devices"]) == (True, 4)
    assert found["rounded"]["lookahead"] == 5
    rounded = found["rounded"]
    size = 12 * rounded["draft_layers"] * rounded["draft_width"] ** 2
    assert size == pytest.approx(rounded["draft_params"]["non_embedding"])
    (low, high), (lower, higher) = found["indifference_1pct"], found["indifference_5pct"]
    assert lower <= low < rounded["draft_params"]["total"] < high < higher
    assert 0 < found["rounded"]["loss_of_rounding"] < 0.01
    small, large = found["candidates"]
    assert small["draft_params"]["total"] == pytest.approx(125e6)
    assert small["draft_params"]["non_embedding"] < 60e6
    assert 0 < small["regret"] < large["regret"]
    assert small["speedup"] < found["speedup"]
    assert small["regret"] == pytest.approx(1 - small["speedup"] / found["speedup"], rel=1e-6)
    assert small["objective_loss"] == pytest.approx(
        found["speedup"] / small["speedup"] - 1, rel=1e-6
    )
    # All of the laws and the device, the most important first.
    paths = [row["path"] for row in found["sensitivities"]]
    assert {
        "hardware.bytes_per_second",
        "hardware.layer_seconds",
        "loss_law.a",
        "acceptance_law.C",
    } <= {*paths}
    first = found["sensitivities"][0]
    assert first["quantity"] == "exponent a of size in the loss law"
    error = first["logarithms_per_standard_error"]["draft_params"]
    assert error == pytest.approx(0.015 / 0.3478 * first["elasticity"]["draft_params"])
    batches = found["pareto"]["batch"]
    assert [row["batch"] for row in batches] == [1, 2, 4, 8, 16, 32]
    assert all(
        a["tokens_per_second"] < b["tokens_per_second"] for a, b in itertools.pairwise(batches)
    )
    assert found["break_even"]["pays_at_every_batch"] is True
    assert found["break_even"]["smallest_batch"] == 1
    assert 5e7 < found["break_even"]["target_params"]["total"] < 1e9
    # No name was given: the settings are of the best candidate, with its lookahead.
    settings = found["engine_settings"]
    assert (settings["draft"]["source"], settings["draft"]["lookahead"]) == (
        "candidate",
        small["lookahead"],
    )
    assert (
        settings["draft"]["speedup"]
        == small["speedup"]
        == settings["speedup_with_draft_on_all_devices"]
    )
    assert settings["vllm"]["speculative_config"]["num_speculative_tokens"] == small["lookahead"]
    assert {row["tokenizer"] for row in found["nearest_published"]} == {"unknown"}
    assert found["nearest_published"][0]["plausible"] is True
    assert found["would_be_feasible_with"] == []
    assert len({row["name"].split("/")[0] for row in found["nearest_published"]}) > 3
    for words in (
        "extrapolates the loss law for the draft",
        "different texts",
        "are assumed, not measured",
        "is extrapolated",
        "R² = 0.602",
        "moves α from",
    ):
        assert any(words in w for w in found["warnings"])


@pytest.mark.slow
def test_a_page_for_people(sdsl):
    status, out, _ = sdsl(*ON_FOUR, *LIMIT, "--candidates", "125M,1.3B", "--picture", "seen.png")
    assert status == 0
    assert "Speculate: a draft of" in out
    assert "5 tokens ahead" in out
    assert "Of your candidates 125M is the best, at γ = 5" in " ".join(out.split())
    assert "settings for your candidate of 125M: its best lookahead is γ = 5" in out
    assert "tokenizer is unknown: give --target-name" in " ".join(out.split())
    assert out.startswith("Target of 70B parameters on 4 × NVIDIA H100 SXM5, batch 8, context 4096")
    assert re.search("optimum ┃ +with whole γ ┃", out)
    assert "larger batches break the limit on latency " in out
    assert max(map(len, out.splitlines())) <= 124
    for words in (
        "candidates",
        "vllm serve",
        "STANDALONE",
        "num_assistant_tokens = 5",
        "break-even",
        "no interval",
    ):
        assert words in out


@pytest.mark.slow
def test_a_page_about_one_measured_draft(sdsl):
    arguments = ("--candidates", "1.24B", "--acceptance", "0.7", "--draft-tokens", "2T")
    status, out, _ = sdsl(*ON_FOUR, *arguments)
    assert status == 0
    assert "Published models" not in out
    assert "larger batches break the limit on memory " in out


@pytest.mark.parametrize(
    ("variables", "heading"),
    [
        (["draft_params", "lookahead"], "with whole γ"),
        (["lookahead", "batch"], "with whole γ and B"),
        (["draft_params", "batch"], "with whole B"),
        (["draft_params"], "as built"),
    ],
)
def test_the_column_of_whole_numbers_names_what_is_rounded(variables, heading):
    assert _rounded_heading(SimpleNamespace(variables=dict.fromkeys(variables))) == heading


@pytest.mark.parametrize(
    ("largest", "broken", "caption"),
    [
        (64, ["memory_bytes"], "larger batches break the limit on memory"),
        (64, ["memory_bytes", "latency_seconds"], "break the limit on memory and latency"),
        (0, ["total_cost"], "every batch breaks the limit on the total cost"),
        (64, [], "larger batches break a limit"),
        (1024, [], None),
    ],
)
def test_the_table_of_batches_names_the_limit_that_ends_it(largest, broken, caption):
    point = SimpleNamespace(
        batch=largest, tokens_per_second=1.0, latency_seconds=1.0, speedup=1.0, lookahead=2.0
    )
    point.draft_params = Size(1e8, 1e8)
    points = [point] if largest else []
    answer = SimpleNamespace(pareto={"batch": points}, next_batch_breaks=broken)
    found = _front(answer).caption
    assert found is None if caption is None else found.endswith(caption)


@pytest.mark.slow
def test_where_speculation_does_not_pay_that_is_said_first(sdsl):
    where = ("--target-params", "30M", "--batch", "8", "--context", "4096", "--vocab-size", "32k")
    status, out, _ = sdsl(*where, *LIMIT)
    assert status == 0
    assert out.splitlines()[2].startswith("Do not speculate")
    assert "It pays for targets of" in out
    assert "vllm serve" not in out
    found = json.loads(sdsl(*where, *LIMIT, "--json")[1])
    assert found["speculate"] is False
    assert found["rounded"]["speedup"] <= 1
    assert found["rounded"]["lookahead"] == 1


@pytest.mark.release
def test_a_device_that_is_just_large_enough_is_feasible(sdsl):
    """Memory hardly depends on a small draft, so that the optimiser needs more rounds to keep its limit."""
    where = (
        "--target-params",
        "34B",
        "--hardware",
        "h100",
        "--draft-tokens",
        "1T",
        "--loss-law",
        "kaplan",
    )
    found = json.loads(sdsl(*where, "--json")[1])
    assert (found["feasible"], found["memory"]["fits"], found["rounded"]["fits"]) == (
        True,
        True,
        True,
    )


@pytest.mark.slow
def test_an_acceptance_of_one_or_more_is_no_answer(sdsl):
    where = (*ON_FOUR, "--target-tokens", "15k")
    out = sdsl(*where)[1]
    first = out.splitlines()[2:8]
    assert first[0].startswith("! the acceptance law gives α = ")
    assert (
        "! the target has fewer training tokens (15k) than parameters (70B): is a suffix missing?"
        in out
    )
    assert "No answer: " in out
    assert "Speculate" not in out
    assert "vllm serve" not in out
    assert json.loads(sdsl(*where, "--json")[1])["speculate"] is False


@pytest.mark.slow
def test_a_limit_that_binds_and_one_that_cannot_be_met(sdsl):
    # Each row more waits for the prefills of all others: the batch grows until the latency is
    # reached.
    status, out, _ = sdsl(
        *ON_FOUR, "--variables", "lookahead,batch", "--constraint", "latency_seconds=6", "--json"
    )
    assert status == 0
    found = json.loads(out)
    assert [c["metric"] for c in found["binding_constraints"]] == ["latency_seconds"]
    assert found["binding_constraints"][0]["multiplier"] > 0
    assert found["latency_seconds"] == pytest.approx(6, rel=1e-5)
    assert 16 < found["variables"]["batch"] < 64
    assert found["rounded"]["within_constraints"] is True
    assert found["rounded"]["latency_seconds"] <= 6
    found = json.loads(sdsl(*ON_FOUR, "--constraint", "latency_seconds=1", "--json")[1])
    assert found["feasible"] is False
    assert "no design keeps all constraints: latency of a request is" in found["warnings"][0]
    assert found["sensitivities"] is None
    (least,) = (
        change["values"]["constraints.latency_seconds"]
        for change in found["would_be_feasible_with"]
    )
    assert 1 < least < 6
    assert not any(
        words in w
        for w in found["warnings"]
        for words in ("converged", "of the starts", "rests on")
    )
    assert (found["speculate"], found["engine_settings"]) == (False, None)
    assert found["warning_severities"][0] == "grave"
    assert found["warning_severities"] == sorted(found["warning_severities"])
    out = sdsl(*ON_FOUR[:4], "--batch", "8", "--devices", "1", *LIMIT)[1]
    assert out.splitlines()[2].startswith("No feasible design: the models do not fit on 1 device")
    assert "It is feasible with --devices 4" in out
    assert "vllm serve" not in out


@pytest.mark.slow
def test_the_least_energy_within_a_time_per_output_token(sdsl):
    """Larger batches save energy and slow each request down, so that the limit on TPOT binds; of a
    mixture of experts, with drafts of its own device."""
    status, out, _ = sdsl(
        "--target-params", "100B", "--experts", "64", "--active-experts", "4", "--devices", "4",
        "--context", "4096", "--prefill", "elsewhere", "--overlapped", "--watts", "500",
        "--variables", "lookahead,batch,draft_params", "--objective", "joules_per_token",
        "--constraint", "output_token_seconds=0.008", "--json",
    )  # fmt: skip
    assert status == 0
    found = json.loads(out)
    assert from_json(Answer, found, "the answer").to_json() == found
    assert found["feasible"] is True
    assert found["output_token_seconds"] == pytest.approx(0.008, rel=1e-5)
    bound = {one["metric"] for one in found["binding_constraints"]}
    assert bound == {"output_token_seconds"}
    # Five devices, the draft's among them.
    assert found["joules_per_token"] * found["tokens_per_second"] == pytest.approx(5 * 500)
    assert found["objective"]["joules_per_token"]["value"] == found["joules_per_token"]
    assert found["cost_breakdown"]["overlap"]["share"] < 0
    assert sum(part["share"] for part in found["cost_breakdown"].values()) == pytest.approx(1)
    assert found["mixture_of_experts"]["experts"] == 64
    paths = {row["path"] for row in found["sensitivities"]}
    assert {"target_family.experts", "hardware.watts"} <= paths
    assert not {path for path in paths if "overlapped" in path or path.startswith("draft_family.e")}


@pytest.mark.slow
def test_a_named_draft_is_served_with_its_own_lookahead(sdsl, tmp_path):
    """The name of one draft and the lookahead of another would be a false setting that nobody notices."""
    text = '[target]\nname = "meta-llama/Llama-3.1-70B"\n[draft]\nname = "meta-llama/Llama-3.2-1B"\ncandidates = [1.24e9]\n'
    (tmp_path / "light.toml").write_text(OPTIMIZER + text)
    status, out, _ = sdsl(*ON_FOUR, *LIMIT, "--json")
    assert status == 0
    found = json.loads(out)
    settings, (candidate,), published = (
        found["engine_settings"],
        found["candidates"],
        found["nearest_published"][0],
    )
    assert (
        settings["draft"]["name"]
        == candidate["published"]
        == published["name"]
        == "meta-llama/Llama-3.2-1B"
    )
    assert settings["draft"]["lookahead"] == candidate["lookahead"] == published["lookahead"]
    assert settings["draft"]["speedup"] == candidate["speedup"] == published["speedup"]
    assert (
        settings["vllm"]["speculative_config"]["num_speculative_tokens"] == candidate["lookahead"]
    )
    # The optimum is another draft, with another lookahead.
    assert found["rounded"]["lookahead"] != candidate["lookahead"]


@pytest.mark.slow
def test_a_measured_acceptance_replaces_the_law(sdsl):
    status, out, _ = sdsl(*ON_FOUR, "--candidates", "1.24B", "--acceptance", "0.8", "--json")
    assert status == 0
    found = json.loads(out)
    assert found["acceptance"] == pytest.approx(0.8)
    assert list(found["variables"]) == ["lookahead"]
    assert found["break_even"] is None
    assert found["candidates"][0]["regret"] >= 0
    # The one draft has one answer, in the headline, among the candidates and among the published
    # models.
    (candidate,), (published,) = found["candidates"], found["nearest_published"]
    assert candidate["published"] == published["name"] == "meta-llama/Llama-3.2-1B"
    assert found["rounded"]["lookahead"] == candidate["lookahead"] == published["lookahead"]
    assert found["rounded"]["speedup"] == pytest.approx(candidate["speedup"])
    assert found["rounded"]["speedup"] == pytest.approx(published["speedup"])


@pytest.mark.release
def test_draws_of_the_laws_give_intervals(sdsl, tmp_path):
    loss = {"E": 1.8172, "A": 482.01, "B": 2085.43, "a": 0.3478, "b": 0.3658}
    gap = {"level": 1.0, "slope": 1.5}
    for name, law, values in (("loss", "chinchilla", loss), ("gap", "logit_gap", gap)):
        draws = {k: [v * (1 + 0.01 * d) for d in (-1, 0, 1)] for k, v in values.items()}
        text = json.dumps(
            {"law": law, "coefficients": values, "draws": draws, "params_count": "total"}
        )
        (tmp_path / f"{name}.json").write_text(text)
    status, out, _ = sdsl(
        *ON_FOUR, "--loss-law", "loss.json", "--acceptance-law", "gap.json", "--json"
    )
    assert status == 0
    found = json.loads(out)
    low, high = found["interval_90"]["draft_params"]
    assert low < found["variables"]["draft_params"]["total"] < high
    assert (
        found["interval_90"]["speedup"][0] < found["speedup"] < found["interval_90"]["speedup"][1]
    )
    assert found["interval_basis"].startswith("3 draws; laws only")
    assert (found["share_of_draws_that_speculate"], found["share_of_draws_left_out"]) == (1, 0)


@pytest.mark.parametrize(
    ("least", "largest", "every", "gapless", "words"),
    [
        (None, None, False, True, "no batch up to 4096"),
        (1, None, True, True, "every batch up to 4096"),
        (1, 40, False, True, "batches up to 40"),
        (20, None, False, True, "batches from 20 on, as far as 4096"),
        (20, 90, False, True, "batches from 20 to 90"),
        (7, 7, False, True, "a batch of 7 alone"),
        (1, None, False, False, "batches up to 4096, though not at all of them"),
    ],
)
def test_batches_that_pay_in_words(least, largest, every, gapless, words):
    region = paying(
        pays_at_some_batch=least is not None,
        smallest_batch=least,
        largest_batch=largest,
        pays_between_them=gapless,
        pays_at_every_batch=every,
    )
    assert region.batches == words


def paying(**known):
    values = {
        "pays_at_some_batch": False,
        "smallest_batch": None,
        "largest_batch": None,
        "pays_between_them": True,
        "pays_at_every_batch": False,
        "largest_batch_considered": 4096,
        "target_params": None,
        "pays_for_every_target": False,
        "best_speedup_here": 1.0,
    }
    return PayingRegion(**values | known)


def test_a_device_too_few(sdsl):
    """70e9 weights of 2 bytes are 140 GB: not on one H100."""
    from sdsl_jax.codesign.serving_problem import build
    from sdsl_jax.config.problem_flags import load_problem

    made = build(
        load_problem(None, {"target": {"params": 70e9}, "hardware": {"name": "h100", "devices": 1}})
    )
    assert "do not fit on 1 device" in made.memory_errors[0]
    assert made.program.constraints == ("memory_bytes",)


@pytest.mark.parametrize(
    ("variables", "words"),
    [
        (["draft_params", "lookahead"], "each at its best lookahead, come within 1% of the best"),
        (
            ["draft_params", "lookahead", "batch", "draft_tokens"],
            "each at its best lookahead, with batch B and draft tokens D unchanged, come within 1%",
        ),
    ],
)
def test_sizes_that_are_as_good_say_what_is_held(variables, words):
    """Other variables stay as in the best design; where memory binds, a smaller batch would allow larger drafts."""
    answer = SimpleNamespace(
        indifference_1pct=[1e6, 2e6],
        indifference_5pct=[5e5, 4e6],
        variables=dict.fromkeys(variables),
        candidates=[],
    )
    assert f"Drafts of 1M to 2M parameters, {words}" in _as_good(answer)


@pytest.mark.parametrize(
    ("variables", "candidates", "words"),
    [
        (["draft_params", "lookahead"], [], " It pays for targets of 1.00B"),
        (["draft_params", "lookahead"], [{}], " With another draft it pays for targets of 1.00B"),
        (["lookahead"], [], " With another draft it pays for targets of 1.00B"),
    ],
)
def test_where_drafts_were_given_it_is_another_that_pays(variables, candidates, words):
    answer = SimpleNamespace(
        feasible=True,
        acceptance=0.7,
        speculate=False,
        rounded=SimpleNamespace(speedup=0.9, lookahead=4, draft_params=Size(1e8, 1e8)),
        break_even=paying(target_params=Size(1e9, 9e8)),
        variables=dict.fromkeys(variables),
        candidates=candidates,
    )
    assert words[:-5] in Answer.verdict.fget(answer)


@pytest.mark.parametrize(
    ("lookahead", "words"),
    [
        ((2.2, 2.8), "a whole number must lie in it"),
        (
            (1.0, 1e9),
            "the upper end of variables.lookahead is 1000000000.0; it must lie in (1, 64]",
        ),
    ],
)
def test_ranges_of_the_lookahead_hold_a_whole_number_and_end(lookahead, words):
    from sdsl_jax.config.codesign_problem import VariablesConfig
    from sdsl_jax.errors import SdslError

    with pytest.raises(SdslError) as error:
        VariablesConfig(lookahead=lookahead)
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((), "the problem file light.toml gives no size of the target; give --target-params"),
        (("--target-params", "many"), "--target-params is 'many'"),
        (("--target-params", "7B", "--hardware", "h9"), "there is no hardware named 'h9'"),
        (
            ("--target-params", "7B", "--devices", "0"),
            "hardware.devices is 0; it must lie in [1, 4096]",
        ),
        (("--target-params", "7B", "--objective", "speed"), "unknown key objective.speed"),
        (("--target-params", "7B", "--objective", "total_cost"), "give --price-per-hour"),
        (
            ("--target-params", "7B", "--constraint", "latency_seconds"),
            "must be of the form METRIC=NUMBER",
        ),
        (("--target-params", "7B", "--constraint", "latency_seconds=-1"), "it must be positive"),
        (("--target-params", "7B", "--variables", "depth"), "unknown key variables.depth"),
        (("--target-params", "7B", "--acceptance", "1.5"), "it must lie in (0, 1)"),
        (("--target-params", "7B", "--acceptance", "70.7"), "write it as a share: 0.707"),
        (
            ("--target-params", "7B", "--acceptance", "many"),
            "--acceptance is 'many'; it must be a number such as 0.8",
        ),
        (("--target-params", "7B", "--acceptance", ".7"), "must be the only candidate"),
        (("--target-params", "7B", "--acceptance", "70%"), "an acceptance of 0.7 was given"),
        (("--target-params", "7B", "--loss-law", "none.json"), "none.json"),
        (("--target-params", "7B", "--picture", "a.gif"), "its name must end in .png"),
        (("--target-params", "1k"), "smaller than its embeddings"),
        (
            ("--target-params", "7B", "--batch", "8.5"),
            "workload.batch is 8.5; it must be a whole number of rows",
        ),
        (
            ("--target-params", "7B", "--prefill", "there"),
            "workload.prefill is 'there'; it must be one of 'here', 'elsewhere'",
        ),
    ],
)
def test_what_is_refused_is_one_sentence(sdsl, arguments, words):
    status, out, err = sdsl(*arguments)
    assert (status, out) == (2, "")
    assert words in err
    assert err.count("\n") == 1
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("one", "five", "sizes", "words"),
    [
        ([4e7, 1e8], [4e7, 3e8], (), "up to 300M within 5% (below 40M none is considered"),
        ([4e7, 1e8], [3e7, 3e8], (), "Drafts of 40M to 100M parameters"),
        (
            [4e7, 1e8],
            [3e7, 3e8],
            (True, False),
            "Of your candidates 2M is the best, at γ = 3: 1.50",
        ),
        ([4e7, 1e8], [3e7, 3e8], (False,), "None of your candidates keeps every constraint."),
    ],
)
def test_the_range_of_sizes_in_words(one, five, sizes, words):
    candidates = [
        SimpleNamespace(
            size=2e6 * (i + 1), lookahead=3, speedup=1.5, objective_loss=-i, within_constraints=kept
        )
        for i, kept in enumerate(sizes)
    ]
    answer = SimpleNamespace(
        indifference_1pct=one, indifference_5pct=five, candidates=candidates, variables=()
    )
    assert words in _as_good(answer)
