"""Engine settings pair a draft with its own lookahead, whichever draft it is, and are judged where the engine puts it."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from sdsl_jax.cli.codesign_report import _remedies
from sdsl_jax.codesign.caveats import (
    _of_the_constraints,
    _of_the_names,
    _of_the_optimum,
    _stated,
)
from sdsl_jax.codesign.comparison import (
    Candidate,
    ComparedDraft,
    Comparison,
    SuggestedDraft,
    _suggested,
    compare,
)
from sdsl_jax.codesign.engines import engine_settings, notes_of, served_draft
from sdsl_jax.codesign.laws import unit_caveats
from sdsl_jax.codesign.remedies import Remedy, _designs, _rounded_up, remedies
from sdsl_jax.codesign.serving_problem import Size, build
from sdsl_jax.config.codesign_problem import DraftConfig
from sdsl_jax.config.problem_flags import load_problem
from sdsl_jax.solver_status import SolverStatus
from sdsl_jax.theory.serving import outcome

LLAMA = "meta-llama/Llama-3.2-1B"


def problem(**sections):
    sections["target"] = {"params": 70e9} | sections.get("target", {})
    return build(load_problem(None, {"hardware": {"devices": 4}} | sections))


NUMBERS = {
    "draft_layers": 6.0,
    "draft_width": 400.0,
    "draft_params": Size(1.24e9, 1e9),
    "acceptance": 0.7,
    "tokens_per_second": 500.0,
    "latency_seconds": 3.0,
    "per_device_bytes": 4e10,
    "fits": True,
    "within_constraints": True,
    "regret": 0.1,
}
OF_MODEL = {
    "family": "Llama",
    "total_params": 1.24e9,
    "tokens": 9e12,
    "tokenizer_shared_with": "x",
    "tokenizer": "shared",
    "plausible": True,
    "divides_among_devices": True,
}


def numbers(lookahead, speedup, **more):
    own = {"lookahead": lookahead, "speedup": speedup, "objective_loss": 1 / speedup}
    return NUMBERS | own | more


def candidate(lookahead, speedup, published=None):
    return Candidate(**numbers(lookahead, speedup), size=1.24e9, published=published)


def model(name, lookahead, speedup=1.5, tokenizer="shared", **more):
    of_model = OF_MODEL | {"name": name, "tokenizer": tokenizer}
    return SuggestedDraft(**numbers(lookahead, speedup) | of_model | more)


OPTIMUM = ComparedDraft(**numbers(5, 1.6))
CANDIDATES = [candidate(3, 1.4), candidate(2, 1.2)]
PUBLISHED = [model(LLAMA, 4, 1.48), model("meta-llama/Llama-3.2-3B", 2, 1.2)]
OTHERS = [model("EleutherAI/pythia-70m", 7, 1.9, "unknown")]
NAMED = ComparedDraft(**numbers(8, 1.1))
CASES = {
    "named": (Comparison(CANDIDATES, PUBLISHED, NAMED, OPTIMUM), "runs/mine", 8),
    "published": (Comparison(CANDIDATES, PUBLISHED, None, OPTIMUM), LLAMA, 4),
    "candidate": (Comparison(CANDIDATES, OTHERS, None, OPTIMUM), "path/to/draft", 3),
    "to_train": (Comparison([], OTHERS, None, OPTIMUM), "path/to/draft", 5),
}
ASKED = DraftConfig(name="runs/mine")


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ["vllm", "sglang", "hugging_face"])
def test_a_name_stands_with_its_own_lookahead(case, engine):
    comparison, name, lookahead = CASES[case]
    served = served_draft(ASKED, comparison)
    assert (served.source, served.lookahead) == (case, lookahead)
    settings = getattr(engine_settings(served.lookahead, 4, served.name), engine)
    if engine == "vllm":
        config = settings.speculative_config
        assert (config["model"], config["num_speculative_tokens"]) == (name, lookahead)
    elif engine == "sglang":
        assert (
            f"--speculative-draft-model-path {name} --speculative-num-steps {lookahead} "
            in settings.command
        )
    else:
        assert f'draft = AutoModelForCausalLM.from_pretrained("{name}"' in settings.code
        assert f"num_assistant_tokens = {lookahead}\n" in settings.code
    assert f"γ = {lookahead}, {served.speedup:.2f} times" in served.sentence


def test_only_drafts_that_pay_and_fit_are_chosen():
    slow = model(LLAMA, 4, 0.9)
    broken = model(LLAMA, 4, 1.9, within_constraints=False)
    uneven = model("Qwen/Qwen2.5-0.5B", 4, 1.9, divides_among_devices=False)
    comparison = Comparison(CANDIDATES, [slow, broken, uneven], None, OPTIMUM)
    assert served_draft(ASKED, comparison).source == "candidate"
    # The draft that was asked for is answered, also where the answer is no.
    for row, words in (
        (ComparedDraft(**numbers(1, 0.9)), "do not speculate with it"),
        (ComparedDraft(**numbers(1, 1.9, within_constraints=False)), "breaks a limit"),
    ):
        named = served_draft(ASKED, dataclasses.replace(comparison, named=row))
        assert (named.source, named.pays) == ("named", False)
        assert named.sentence.startswith("no settings for runs/mine")
        assert words in named.sentence


def test_a_measured_acceptance_is_the_candidates():
    measured = DraftConfig(candidates=(1.24e9,), acceptance=0.7)
    comparison = Comparison([candidate(3, 1.4, LLAMA)], PUBLISHED, None, OPTIMUM)
    served = served_draft(measured, comparison)
    assert (served.source, served.name, served.lookahead) == ("candidate", LLAMA, 3)


def test_what_stands_in_the_way_of_an_engine():
    assert notes_of(LLAMA, 4) == []
    heads, padded = notes_of("Qwen/Qwen2.5-0.5B", 4)
    assert "14 query heads, which 4 devices cannot share" in heads
    assert "pad the draft's embedding" in padded


@pytest.mark.parametrize(
    ("draft", "target", "words"),
    [
        ({"name": "runs/mine"}, "", "the size of runs/mine is unknown"),
        (
            {"name": LLAMA},
            "Qwen/Qwen2.5-72B",
            f"{LLAMA} has a different tokenizer from Qwen/Qwen2.5-72B",
        ),
        (
            {"name": LLAMA},
            "mistralai/Mistral-7B",
            "the tokenizer of mistralai/Mistral-7B is unknown here",
        ),
        (
            {"name": "Qwen/Qwen3-0.6B", "candidates": [1.24e9], "acceptance": 0.7},
            "",
            "measured with a draft of 1.24B",
        ),
        ({"name": LLAMA}, "meta-llama/Llama-3.1-70B", None),
        (
            {"name": "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B"},
            "",
            "is a drafting head and no model by itself",
        ),
        ({}, "", None),
    ],
)
def test_what_names_do_not_tell(draft, target, words):
    found = _of_the_names(problem(draft=draft, target={"name": target}))
    assert bool(found) == (words is not None)
    assert words is None or words in found[0]


@pytest.fixture(scope="module")
def comparison():
    """Drafts beside a design, without solving for it; a named and a candidate Llama-3.2-1B among them."""
    draft = {"name": LLAMA, "candidates": [1.24e9, 3.5e8]}
    made = problem(
        draft=draft,
        target={"name": "meta-llama/Llama-3.1-70B"},
        workload={"batch": 8, "context": 4096},
    )
    with jax.enable_x64(True):
        design = made.inputs.fixed._replace(draft_params=1e7)
        solved = SimpleNamespace(objective=0.0, outcome=outcome(made.inputs.serving, design))
        return compare(made, solved, design)


def test_one_draft_has_one_answer(comparison):
    known, own = comparison.candidates
    (published,) = [row for row in comparison.published if row.name == LLAMA]
    assert known.published == LLAMA
    assert own.published is None
    for key in ("lookahead", "speedup", "acceptance"):
        values = {getattr(row, key) for row in (known, published, comparison.named)}
        assert len(values) == 1
    assert own.speedup != known.speedup


def test_known_tokenizers_come_first(comparison):
    assert {row.tokenizer for row in comparison.published} == {"shared"}
    assert {row.family for row in comparison.published} == {"Llama"}


def test_without_a_name_families_without_such_a_target_come_last():
    rows = [
        model("EleutherAI/pythia-70m", 5, 1.9, "unknown", plausible=False, family="pythia"),
        model(LLAMA, 4, 1.5, "unknown"),
        model("meta-llama/Llama-3.2-3B", 2, 1.2, "unknown"),
    ]
    assert [row.name for row in _suggested(rows)] == [LLAMA, "EleutherAI/pythia-70m"]


def test_the_draft_is_on_all_devices_unless_told_otherwise():
    """The candidate of 1.24B at 64 rows fits where it is split, as vLLM has it, and not on one device of four."""
    sections = {
        "draft": {"candidates": [1.24e9], "acceptance": 0.7, "tokens": 2e12},
        "workload": {"batch": 64, "context": 4096},
    }
    everywhere = problem(**sections)
    assert float(everywhere.inputs.serving.draft_devices) == 4
    assert everywhere.memory_errors == ()
    apart = problem(**sections | {"draft": sections["draft"] | {"devices": 1}})
    assert float(apart.inputs.serving.draft_devices) == 1
    assert "weights and caches of target and draft" in apart.memory_errors[0]
    with jax.enable_x64(True):
        found = remedies(apart, apart.inputs.fixed)
        assert found[0] == Remedy("--draft-devices 4", {"draft.devices": 4})
        assert found[1].flags == "--devices 8"
        rows = found[2].values["workload.batch"]
        # One row more does not fit.
        for batch, fits in ((rows, True), (rows + 1, False)):
            here = problem(
                **sections
                | {
                    "draft": sections["draft"] | {"devices": 1},
                    "workload": {"batch": batch, "context": 4096},
                }
            )
            assert (here.memory_errors == ()) == fits
    assert _remedies(found).startswith(
        "It is feasible with --draft-devices 4, or with --devices 8, or with --batch "
    )
    assert "No number of devices" in _remedies([])


def test_limits_that_must_move_together_are_one_remedy():
    asked = problem(constraints={"latency_seconds": 1.0, "first_token_seconds": 0.01})
    with jax.enable_x64(True):
        (found,) = remedies(asked, asked.inputs.fixed)
    assert set(found.values) == {
        "constraints.latency_seconds",
        "constraints.first_token_seconds",
    }
    kept = {name.partition(".")[2]: value for name, value in found.values.items()}
    relaxed = problem(constraints=kept)
    with jax.enable_x64(True):
        assert _designs(relaxed, relaxed.inputs.fixed, 4, 4).allowed.any()
    assert found.flags.count("--constraint") == 2


def test_units_that_are_doubted_question_the_whole_answer():
    asked = problem(target={"tokens": 15_000}, draft={"tokens": 1e6})
    stated = _stated(asked, asked.inputs.fixed._replace(draft_params=1e8))
    few_draft, few_target, far = unit_caveats(asked.loss, asked.acceptance, stated)
    assert few_draft.startswith("the draft has fewer training tokens (1M) than parameters (")
    assert few_target.startswith("the target has fewer training tokens (15k) than parameters (70B)")
    assert "15k training tokens of the target (333,333 times)" in far


def test_the_least_limit_is_rounded_up():
    assert _rounded_up(2.6512) == 2.66
    assert _rounded_up(0.0123) == 0.0124
    assert _rounded_up(72_310_000_000.0) == 72_400_000_000.0


def test_what_is_not_feasible_has_no_warnings_of_the_optimiser():
    made = problem()
    rough = SimpleNamespace(
        feasible=False,
        outcome=SimpleNamespace(acceptance=0.6),
        at_lower=[True, True],
        at_upper=[False, False],
        design=made.inputs.fixed,
        starts_agreeing=0.0,
        kkt_residual=1.0,
        status=SolverStatus.ITERATION_CAP,
    )
    assert _of_the_optimum(made, rough, False) == []
    rough.feasible = True
    assert any("before it converged" in text for text in _of_the_optimum(made, rough, False))
    rough.status = SolverStatus.ON_BOUND
    assert not any(
        "optimizer" in text and "raise its" in text for text in _of_the_optimum(made, rough, True)
    )


def test_numbers_that_are_not_finite_are_no_broken_limit():
    """Without a single finite design the laws are to blame, and no constraint."""
    lost = SimpleNamespace(feasible=False, status=SolverStatus.NON_FINITE, kkt_residual=np.nan)
    assert _of_the_constraints(problem(), lost, lost) == [
        "the optimizer met a number that is not finite: check the laws and the bounds of the variables"
    ]
