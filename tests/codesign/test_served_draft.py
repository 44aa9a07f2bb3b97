"""Engine settings pair a draft with its own lookahead, whichever draft it is, and are judged where the engine puts it."""

from types import SimpleNamespace

import jax
import pytest

from sdsl_jax.cli.codesign_report import _remedies
from sdsl_jax.codesign.caveats import _of_the_names, _of_the_optimum, _stated
from sdsl_jax.codesign.comparisons import Comparison, compare
from sdsl_jax.codesign.engines import engine_settings
from sdsl_jax.codesign.laws import unit_caveats
from sdsl_jax.codesign.remedies import _keeps, _rounded_up, remedies
from sdsl_jax.codesign.served_draft import notes_of, served_draft
from sdsl_jax.codesign.serving_problem import build
from sdsl_jax.config.codesign_problem import load_problem
from sdsl_jax.theory.serving import outcome

LLAMA = "meta-llama/Llama-3.2-1B"


def problem(**sections):
    sections["target"] = {"params": 70e9} | sections.get("target", {})
    return build(load_problem(None, {"hardware": {"devices": 4}} | sections))


def row(lookahead, speedup=1.5, **more):
    size = {"total": 1.24e9, "non_embedding": 1e9}
    values = {"draft_params": size, "lookahead": lookahead, "speedup": speedup, "acceptance": 0.7}
    return values | {"within_constraints": True, "objective_loss": 1 / speedup} | more


def model(name, lookahead, speedup=1.5, tokenizer="shared", **more):
    extra = {
        "name": name,
        "total_params": 1.24e9,
        "tokenizer": tokenizer,
        "divides_among_devices": True,
    }
    return row(lookahead, speedup, **extra) | more


WHOLE = SimpleNamespace(
    design=SimpleNamespace(draft_params=1e7, lookahead=6.0, aspect_ratio=64.0, batch=8.0),
    outcome=SimpleNamespace(acceptance=0.6, speedup=1.68),
    feasible=True,
)
OPTIMUM = row(5, 1.6)
CANDIDATES = [row(3, 1.4, published=None), row(2, 1.2, published=None)]
PUBLISHED = [model(LLAMA, 4, 1.48), model("meta-llama/Llama-3.2-3B", 2, 1.2)]
OTHERS = [model("EleutherAI/pythia-70m", 7, 1.9, "unknown")]
CASES = {
    "named": (Comparison(CANDIDATES, PUBLISHED, row(8, 1.1), OPTIMUM), "runs/mine", 8),
    "published": (Comparison(CANDIDATES, PUBLISHED, None, OPTIMUM), LLAMA, 4),
    "candidate": (Comparison(CANDIDATES, OTHERS, None, OPTIMUM), "path/to/draft", 3),
    "to_train": (Comparison([], OTHERS, None, OPTIMUM), "path/to/draft", 6),
}


@pytest.fixture(scope="module")
def asked():
    return problem(draft={"name": "runs/mine"})


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("engine", ["vllm", "sglang", "hugging_face"])
def test_a_name_stands_with_its_own_lookahead(asked, case, engine):
    found, name, lookahead = CASES[case]
    served = served_draft(asked, found, WHOLE, as_solved=True)
    assert (served.source, served.lookahead) == (case, lookahead)
    made = engine_settings(served.lookahead, 4, served.name)[engine]
    if engine == "vllm":
        settings = made["speculative_config"]
        assert (settings["model"], settings["num_speculative_tokens"]) == (name, lookahead)
    elif engine == "sglang":
        assert (
            f"--speculative-draft-model-path {name} --speculative-num-steps {lookahead} "
            in made["command"]
        )
    else:
        assert f'draft = AutoModelForCausalLM.from_pretrained("{name}"' in made["code"]
        assert f"num_assistant_tokens = {lookahead}\n" in made["code"]
    assert f"γ = {lookahead}, {served.speedup:.2f} times" in served.sentence()


def test_only_drafts_that_pay_and_fit_are_chosen(asked):
    slow = model(LLAMA, 4, 0.9)
    broken = model(LLAMA, 4, 1.9, within_constraints=False)
    uneven = model("Qwen/Qwen2.5-0.5B", 4, 1.9, divides_among_devices=False)
    found = Comparison(CANDIDATES, [slow, broken, uneven], None, OPTIMUM)
    assert served_draft(asked, found, WHOLE, as_solved=True).source == "candidate"
    # The draft that was asked for is answered, also where the answer is no.
    named = served_draft(asked, found._replace(named=row(1, 0.9)), WHOLE, as_solved=True)
    assert (named.source, named.pays) == ("named", False)
    assert "no settings for runs/mine" in named.sentence()
    assert "do not speculate with it" in named.sentence()
    assert "breaks a limit" in named._replace(within_constraints=False).sentence()


def test_elsewhere_the_optimum_is_compared_anew(asked):
    found = Comparison([], [], None, OPTIMUM)
    assert served_draft(asked, found, WHOLE, as_solved=False).lookahead == 5


def test_a_measured_acceptance_is_the_candidates(asked):
    measured = problem(
        draft={"candidates": [1.24e9], "acceptance": 0.7},
        target={"name": "meta-llama/Llama-3.1-70B"},
    )
    found = Comparison([row(3, 1.4, published=LLAMA)], PUBLISHED, None, OPTIMUM)
    served = served_draft(measured, found, WHOLE, as_solved=True)
    assert (served.source, served.name, served.lookahead) == ("candidate", LLAMA, 3)


def test_what_stands_in_the_way_of_an_engine(asked):
    found, _, _ = CASES["published"]
    served = served_draft(asked, found, WHOLE, as_solved=True)
    assert notes_of(asked, served) == []
    heads, padded = notes_of(asked, served._replace(name="Qwen/Qwen2.5-0.5B"))
    assert "14 query heads, which 4 devices cannot share" in heads
    assert "pad the draft's embedding" in padded


@pytest.mark.parametrize(
    ("draft", "target", "words"),
    [
        ({"name": "runs/mine"}, "", "the size of runs/mine is not known"),
        (
            {"name": LLAMA},
            "Qwen/Qwen2.5-72B",
            f"{LLAMA} has another tokenizer than Qwen/Qwen2.5-72B",
        ),
        (
            {"name": LLAMA},
            "mistralai/Mistral-7B",
            "the tokenizer of mistralai/Mistral-7B is not known here",
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
def compared():
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


def test_one_draft_has_one_answer(compared):
    candidate, own = compared.candidates
    (published,) = [each for each in compared.published if each["name"] == LLAMA]
    assert candidate["published"] == LLAMA
    assert own["published"] is None
    for key in ("lookahead", "speedup", "acceptance"):
        assert candidate[key] == published[key] == compared.named[key]
    assert own["speedup"] != candidate["speedup"]


def test_known_tokenizers_come_first(compared):
    assert {each["tokenizer"] for each in compared.published} == {"shared"}
    assert {each["family"] for each in compared.published} == {"Llama"}


def test_without_a_name_families_without_such_a_target_come_last():
    from sdsl_jax.codesign.comparisons import _suggested

    rows = [
        model(
            "EleutherAI/pythia-70m",
            5,
            1.9,
            "unknown",
            plausible=False,
            family="pythia",
            tokenizer_shared_with="x",
        ),
        model(LLAMA, 4, 1.5, "unknown", plausible=True, family="Llama", tokenizer_shared_with="x"),
        model(
            "meta-llama/Llama-3.2-3B",
            2,
            1.2,
            "unknown",
            plausible=True,
            family="Llama",
            tokenizer_shared_with="x",
        ),
    ]
    assert [each["name"] for each in _suggested(rows)] == [LLAMA, "EleutherAI/pythia-70m"]


def test_the_draft_is_on_all_devices_unless_told_otherwise():
    """The candidate of 1.24B at 64 rows fits where it is split, as vLLM has it, and not on one device of four."""
    sections = {
        "draft": {"candidates": [1.24e9], "acceptance": 0.7, "tokens": 2e12},
        "workload": {"batch": 64, "context": 4096},
    }
    everywhere = problem(**sections)
    assert float(everywhere.inputs.serving.draft_devices) == 4
    assert everywhere.misfits == ()
    apart = problem(**sections | {"draft": sections["draft"] | {"devices": 1}})
    assert float(apart.inputs.serving.draft_devices) == 1
    assert "weights and caches of target and draft" in apart.misfits[0]
    with jax.enable_x64(True):
        found = remedies(apart, apart.inputs.fixed)
        assert found[0] == {"flags": "--draft-devices 4", "values": {"draft.devices": 4}}
        assert found[1]["flags"] == "--devices 8"
        rows = found[2]["values"]["workload.batch"]
        # One row more does not fit.
        for batch, fits in ((rows, True), (rows + 1, False)):
            here = problem(
                **sections
                | {
                    "draft": sections["draft"] | {"devices": 1},
                    "workload": {"batch": batch, "context": 4096},
                }
            )
            assert (here.misfits == ()) == fits
    assert _remedies(found).startswith(
        "It is feasible with --draft-devices 4, or with --devices 8, or with --batch "
    )
    assert "No number of devices" in _remedies([])


def test_limits_that_must_move_together_are_one_remedy():
    asked = problem(constraints={"latency_seconds": 1.0, "first_token_seconds": 0.01})
    with jax.enable_x64(True):
        (found,) = remedies(asked, asked.inputs.fixed)
    assert set(found["values"]) == {
        "constraints.latency_seconds",
        "constraints.first_token_seconds",
    }
    kept = {name.partition(".")[2]: value for name, value in found["values"].items()}
    relaxed = problem(constraints=kept)
    with jax.enable_x64(True):
        assert _keeps(relaxed, relaxed.inputs.fixed, 4, 4)
    assert found["flags"].count("--constraint") == 2


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
    )
    assert _of_the_optimum(made, rough, False) == []
    rough.feasible = True
    assert any("has not converged" in text for text in _of_the_optimum(made, rough, False))
