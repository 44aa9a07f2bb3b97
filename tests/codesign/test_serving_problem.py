"""From settings to numbers: units, memory by hand, ranges, and what is refused."""

import ast
import dataclasses
import json
import shlex

import jax
import numpy as np
import pytest

from sdsl_jax.codesign.comparison import compared, published
from sdsl_jax.codesign.engines import engine_settings
from sdsl_jax.codesign.program import METRICS
from sdsl_jax.codesign.serving_problem import (
    build,
    memory,
    non_embedding_params,
    total_params,
)
from sdsl_jax.config.codesign_problem import (
    ConstraintsConfig,
    ObjectiveConfig,
    VariablesConfig,
    kaplan_penalty,
)
from sdsl_jax.config.problem_flags import load_problem
from sdsl_jax.errors import SdslError
from sdsl_jax.theory import ModelPoint, ShapeRule
from sdsl_jax.theory.hardware import Shape, family_shape, round_time
from sdsl_jax.theory.published_models import PUBLISHED_DRAFTS
from sdsl_jax.theory.serving import Design


def problem(**sections):
    sections["target"] = {"params": 70e9} | sections.get("target", {})
    return build(load_problem(None, sections))


def test_sections_name_what_the_program_knows():
    for config in (ObjectiveConfig, ConstraintsConfig):
        assert tuple(f.name for f in dataclasses.fields(config)) == tuple(METRICS)
    assert {f.name for f in dataclasses.fields(VariablesConfig)} == {*Design._fields}


@pytest.mark.parametrize("tables", [1.0, 2.0])
def test_counts_convert_both_ways(tables, x64):
    rule = ShapeRule(64.0, 32_000.0, 0.0, 1.0, tables)
    params = np.geomspace(1e5, 1e11, 7)
    totals = [float(total_params(n, rule)) for n in params]
    assert np.all(np.diff(totals) > 0)
    assert [non_embedding_params(t, rule) for t in totals] == pytest.approx(params, rel=1e-9)


def test_a_count_by_hand(x64):
    """12·layers·width² with width = 64·layers: 12 layers are 768 wide and hold 84.9M; 50,272 tokens add 38.6M."""
    rule = ShapeRule(64.0, 50_272.0, 0.0)
    assert total_params(12 * 12 * 768**2, rule) == pytest.approx(
        12 * 12 * 768**2 + 50_272 * 768, rel=1e-6
    )


def test_a_size_below_its_embeddings_is_refused(x64):
    with pytest.raises(SdslError, match="smaller than its embeddings"):
        non_embedding_params(1000.0, ShapeRule(64.0, 128_000.0, 0.0))


def test_sizes_are_in_the_count_of_the_loss_law():
    total = problem()
    assert total.sizes.stated(total.inputs.fixed, "target_params") == pytest.approx(70e9, rel=1e-9)
    assert float(total.inputs.fixed.target_params) < 70e9
    # Kaplan's law counts what is outside the embeddings.
    plain = problem(laws={"loss": "kaplan"})
    assert float(plain.inputs.fixed.target_params) == 70e9


def test_memory_by_hand():
    """At 2 bytes a weight and a cache element, on 4 devices with the draft on one of them."""
    sections = {
        "hardware": {"name": "h100", "devices": 4},
        "workload": {"batch": 8, "context": 4096},
    }
    made = problem(**sections, draft={"devices": 1})
    serving, design = made.inputs.serving, made.inputs.fixed
    with jax.enable_x64(True):
        held = memory(serving, design)
    size, params = float(design.target_params), 70e9
    layers = (size / 12 / 100**2) ** (1 / 3)
    # Keys and values of 8 rows of 3968 + 256 positions.
    cache = 2 * 8 * (3968 + 256) * layers * (100 * layers / 8)
    assert held.target_bytes == pytest.approx(2 * params + 2 * cache, rel=1e-6)
    assert held.per_device_bytes == pytest.approx(held.target_bytes / 4 + held.draft_bytes)
    assert held.usable_share * held.capacity_bytes == pytest.approx(72e9)
    assert held.fits is True
    # 152 GB, less what the draft leaves of 72 GB a device: 3 devices hold it, and 4 are the next
    # power of two.
    assert (held.smallest_devices_exactly, held.smallest_devices) == (3, 4)
    assert made.program.constraints == ("memory_bytes",)


def test_what_does_not_fit_is_said_and_no_design_is_feasible():
    made = problem(hardware={"name": "h100", "devices": 1})
    assert made.program.constraints == ("memory_bytes",)
    assert "do not fit on 1 device" in made.memory_errors[0]
    assert "2 would do" in made.memory_errors[0] or "4 would do" in made.memory_errors[0]


def test_context_and_prompt_follow_from_each_other():
    assert problem(workload={"context": 4096}).config.workload.prompt == 4096 - 128
    made = problem(workload={"prompt_tokens": 1000, "new_tokens": 400})
    assert float(made.inputs.serving.context) == 1200


def test_ranges_are_converted_and_free_ones_fit_the_problem():
    made = problem(variables={"draft_params": [1e8, 1e10], "batch": "free"})
    assert made.program.variables == ("draft_params", "batch")
    ends = [
        made.sizes.stated(getattr(made.inputs, end), "draft_params") for end in ("lower", "upper")
    ]
    assert ends == pytest.approx([1e8, 1e10], rel=1e-9)
    assert float(made.inputs.upper.batch) == 1024


def test_the_penalty_on_shapes_is_that_of_kaplan_from_the_ratio_it_is_counted_from():
    """ln²(714.7/64) − ln²(33.3/64) = 5.82 − 0.43, and 0.03/5.40 = 0.0056."""
    made = problem(variables={"aspect_ratio": "free"})
    assert float(made.inputs.serving.aspect_penalty) == pytest.approx(0.0056, abs=5e-5)
    wide, deep = (1 + kaplan_penalty(48.0) * np.log(r / 48.0) ** 2 for r in (4288 / 6, 1600 / 48))
    assert wide - deep == pytest.approx(0.03)
    assert float(problem(laws={"aspect_penalty": 0.0}).inputs.serving.aspect_penalty) == 0.0
    # Where the shape is no variable nothing is counted.
    assert float(problem(draft={"aspect_ratio": 160.0}).inputs.serving.aspect_penalty) == 0.0


def test_names_of_variables_keep_the_ranges_of_the_file(tmp_path):
    file = tmp_path / "a.toml"
    file.write_text("[target]\nparams = 7e9\n[variables]\nlookahead = [2, 5]\nbatch = [1, 9]\n")
    made = load_problem(file, {}, ["lookahead", "draft_params"])
    assert made.variables.given() == {"draft_params": "free", "lookahead": (2.0, 5.0)}


def test_a_measured_acceptance_fixes_the_draft():
    made = problem(draft={"candidates": [1.1e9], "acceptance": 0.7})
    assert made.program.variables == ("lookahead",)
    assert made.sizes.stated(made.inputs.fixed, "draft_params") == pytest.approx(1.1e9)
    with jax.enable_x64(True):
        any_model = ModelPoint(1e9, 2.0, 1e12)
        assert float(made.acceptance.law(any_model, any_model)) == pytest.approx(0.7)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"target": {"params": -1.0}}, r"target.params is -1.0; it must lie in \(0, 1e18\]"),
        ({"target": {"kv_share": 2.0}}, r"target.kv_share is 2.0; it must lie in \(0, 1\]"),
        ({"target": {"size": 1.0}}, "unknown key target.size"),
        ({"draft": {"acceptance": 0.7}}, "must be the only candidate"),
        ({"draft": {"acceptance": 80.0}}, r"draft.acceptance is 80.0; .* write it as a share: 0.8"),
        ({"draft": {"devices": 2}}, r"draft.devices is 2; it must lie in \[1, 1\]"),
        ({"hardware": {"devices": 1.5}}, "hardware.devices is 1.5; it must be a whole number"),
        ({"hardware": {"name": "h1000"}}, "there is no hardware named 'h1000'"),
        ({"workload": {"batch": 0.0}}, r"workload.batch is 0.0; it must lie in \[1"),
        ({"laws": {"loss": "chinchilla"}}, "chinchilla is no loss law"),
        ({"objective": {"speed": 1.0}}, "unknown key objective.speed"),
        ({"objective": {"total_cost": 1.0}}, "give --price-per-hour"),
        ({"constraints": {"training_cost": 1.0}}, "give --price-per-hour"),
        (
            {"constraints": {"latency_seconds": 0.0}},
            "constraints.latency_seconds is 0.0; it must be positive",
        ),
        ({"variables": {"batch": [8.0, 2.0]}}, 'variables.batch is .* it must be "free"'),
        ({"variables": {"lookahead": 3.0}}, "it must be a string or an array of finite numbers"),
        (
            {"variables": {"lookahead": [0.5, 3.0]}},
            "the lower end of variables.lookahead is 0.5; it must be at least 1",
        ),
        (
            {"draft": {"aspect_ratio": 160.0}, "variables": {"aspect_ratio": "free"}},
            "draft.aspect_ratio is 160, .* give laws.aspect_penalty",
        ),
        ({"optimizer": {"name": "lion"}}, "optimizer.name is 'lion'; it must be one of 'adam'"),
    ],
)
def test_what_is_refused(sections, words):
    with pytest.raises(SdslError, match=words) as error:
        problem(**sections)
    assert str(error.value).count("\n") == 0


def test_engines_are_told_the_lookahead():
    told = engine_settings(5, 4, "a/draft", "a/target")
    assert told.vllm.speculative_config["num_speculative_tokens"] == 5
    assert told.vllm.speculative_config["draft_tensor_parallel_size"] == 4
    for words in (
        "--speculative-num-steps 5",
        "--speculative-num-draft-tokens 6",
        "--speculative-eagle-topk 1",
    ):
        assert words in told.sglang.command
    code = told.hugging_face.code
    assert "num_assistant_tokens = 5" in code
    assert 'target = AutoModelForCausalLM.from_pretrained("a/target"' in code
    compile(code, "snippet", "exec")


@pytest.mark.parametrize(
    "name", ["my models/a draft", 'it\'s "big"', "$(touch x); `y` & z", "a\\b", "naïve 模型"]
)
def test_names_in_the_commands_of_engines_are_quoted(name):
    told = engine_settings(5, 4, name, f"{name}-target")
    words = shlex.split(told.vllm.command)
    assert words[2] == f"{name}-target"
    assert (
        json.loads(words[words.index("--speculative-config") + 1]) == told.vllm.speculative_config
    )
    words = shlex.split(told.sglang.command)
    assert words[words.index("--model-path") + 1] == f"{name}-target"
    assert words[words.index("--speculative-draft-model-path") + 1] == name
    constants = [
        x.value for x in ast.walk(ast.parse(told.hugging_face.code)) if isinstance(x, ast.Constant)
    ]
    assert constants.count(name) == 1
    assert constants.count(f"{name}-target") == 2


def test_assisted_generation_takes_one_row():
    assert not any("batch of 1 only" in note for note in engine_settings(5, 4).notes)
    assert "one row at a time" in engine_settings(5, 4, batch=8).notes[-1]


def test_published_models_are_what_their_names_say():
    """Sizes in names are totals, or leave the embeddings out (Pythia's names count them; Qwen3-0.6B is 0.596)."""
    for draft in PUBLISHED_DRAFTS:
        text = draft.name.rpartition("-")[2].lower()
        named = float(text[:-1]) * {"m": 1e6, "b": 1e9}[text[-1]]
        assert draft.total_params == pytest.approx(named, rel=0.25), draft.name
        blocks = draft.shape.params
        assert float(draft.shape.total_params) == pytest.approx(draft.total_params)
        # 12·layers·width², or more where the MLP is wider than 8/3 of the width.
        assert 0.7 < blocks / (12 * draft.layers * draft.width**2) < 2, draft.name


def test_published_models_keep_their_layers_and_width(x64):
    """Llama-3.2-1B, wider in its MLP than 12·l·w², holds 32 kB of cache a position: 16 layers of 8 key-value heads of 64."""
    sections = {
        "hardware": {"name": "h100", "devices": 4},
        "workload": {"batch": 8, "context": 4096},
    }
    made = problem(**sections, draft={"devices": 1})
    drafts = [published(made.inputs, model) for model in PUBLISHED_DRAFTS]
    found = compared(made.program, made.inputs, made.inputs.fixed, drafts)
    i = [draft.name for draft in PUBLISHED_DRAFTS].index("meta-llama/Llama-3.2-1B")
    target = memory(made.inputs.serving, made.inputs.fixed).target_bytes / 4
    cache = 8 * (3968 + 256) * 16 * 2 * 8 * 64 * 2
    assert float(found.outcome.memory_bytes[i]) == pytest.approx(
        target + 2 * 1.236e9 + cache, rel=1e-9
    )
    lookahead = float(found.design.lookahead[i])
    given = made.inputs.serving
    took = round_time(
        given.hardware,
        Shape(1.236e9 - 128_256 * 2048, 16, 2048, 2048, 512, 128_256, 1),
        family_shape(made.inputs.fixed.target_params, given.target_family),
        lookahead,
        8.0,
        4096.0,
        given.precision,
        given.draft_precision,
        4.0,
    )
    assert float(found.outcome.round.draft[i]) == pytest.approx(float(took.draft), rel=1e-9)
