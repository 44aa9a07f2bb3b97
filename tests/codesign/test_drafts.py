"""Names and sizes of drafts and targets: which models they mean, and who shares a tokenizer with whom."""

import numpy as np
import pytest

from sdsl_jax.codesign.drafts import (
    asked_drafts,
    family_of_drafts,
    model_of,
    named_draft,
    published_draft,
    size_in_name,
)
from sdsl_jax.codesign.serving_problem import build
from sdsl_jax.config.problem_flags import load_problem
from sdsl_jax.theory.published_models import PUBLISHED_DRAFTS

LLAMA = "meta-llama/Llama-3.2-1B"


def config(**sections):
    sections["target"] = {"params": 70e9} | sections.get("target", {})
    return load_problem(None, sections)


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("facebook/opt-30b", "opt"),
        ("facebook/opt-iml-max-30b", "opt"),
        ("Qwen/Qwen2.5-72B-Instruct", "Qwen2.5"),
        ("Qwen/Qwen2.5-Coder-32B-Instruct", "Qwen2.5"),
        ("Qwen/QwQ-32B", "Qwen2.5"),
        ("Qwen/QwQ-32B-Preview", "Qwen2.5"),
        ("deepseek-ai/DeepSeek-R1-Distill-Qwen-32B", "Qwen2.5"),
        ("Qwen/Qwen3-30B-A3B", "Qwen3"),
        ("Qwen/Qwen3-Coder-480B-A35B-Instruct", "Qwen3"),
        ("meta-llama/Meta-Llama-3-70B", "Llama"),
        ("meta-llama/Llama-3.1-70B", "Llama"),
        ("meta-llama/Meta-Llama-3.1-405B-Instruct-FP8", "Llama"),
        ("unsloth/Llama-3.3-70B-Instruct", "Llama"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "Llama"),
        ("/models/Llama-3.1-70B/", "Llama"),
        ("llama3.1:70b", "Llama"),
        ("qwen2.5-coder:32b", "Qwen2.5"),
        ("qwen3-coder:30b", "Qwen3"),
        ("EleutherAI/gpt-neox-20b", "pythia"),
        ("HuggingFaceTB/SmolLM2-1.7B-Instruct", "SmolLM2"),
        # Relatives with another vocabulary or other inputs, and families without a small published
        # draft.
        ("meta-llama/Llama-2-70b-hf", None),
        ("meta-llama/Llama-3.2-90B-Vision-Instruct", None),
        ("meta-llama/Llama-4-Scout-17B-16E", None),
        ("codellama/CodeLlama-70b-hf", None),
        ("huggyllama/llama-30b", None),
        ("Qwen/Qwen2.5-VL-72B-Instruct", None),
        ("Qwen/Qwen3-Next-80B-A3B-Instruct", None),
        ("Qwen/Qwen3.5-27B", None),
        ("Qwen/Qwen3-Embedding-8B", None),
        ("abeja/gpt-neox-japanese-2.7b", None),
        ("mistralai/Mistral-Large-Instruct-2407", None),
        ("deepseek-ai/DeepSeek-R1", None),
        ("a/mine", None),
        ("", None),
    ],
)
def test_families_of_drafts_by_the_name_of_the_target(name, family):
    assert family_of_drafts(name) == family
    assert family is None or family in {draft.family for draft in PUBLISHED_DRAFTS}


@pytest.mark.parametrize(
    ("name", "published", "size"),
    [
        (LLAMA, LLAMA, 1e9),
        ("unsloth/Llama-3.2-1B-Instruct", LLAMA, 1e9),
        ("meta-llama/Llama-3.2-11B-Vision", None, 11e9),
        ("Qwen/Qwen2.5-Coder-0.5B-Instruct", "Qwen/Qwen2.5-0.5B", 0.5e9),
        ("EleutherAI/pythia-1b-deduped", "EleutherAI/pythia-1b", 1e9),
        ("EleutherAI/pythia-1.4b", "EleutherAI/pythia-1.4b", 1.4e9),
        ("EleutherAI/pythia-12b", None, 12e9),
        ("JackFram/llama-160m", None, 160e6),
        ("runs/mine", None, None),
        ("mixed-1b-to-7b", None, None),
        # Drafting heads state the size of their target.
        ("yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", None, None),
        ("FasterDecoding/medusa-vicuna-7b-v1.3", None, None),
        ("someone/Qwen3-0.6B_eagle3", None, None),
        ("someone/Llama-3.2-1B-MTP", None, None),
    ],
)
def test_models_and_sizes_by_name(name, published, size):
    found = published_draft(name)
    assert (found and found.name) == published
    assert size_in_name(name) == size


def test_every_published_model_is_found_by_its_own_name_and_has_whole_heads():
    for draft in PUBLISHED_DRAFTS:
        assert published_draft(draft.name) is draft
        assert (draft.query_share * draft.width / draft.heads) in (64.0, 128.0, 80.0, 256.0)


@pytest.mark.parametrize(
    ("draft", "size"),
    [
        ({"name": LLAMA}, 1.236e9),
        ({"name": "runs/mine", "candidates": [3e8]}, 3e8),
        ({"name": "JackFram/llama-160m", "candidates": [1.24e9, 1.6e8]}, 1.6e8),
        # The name knows better than a candidate of another size.
        ({"name": "JackFram/llama-160m", "candidates": [1.24e9]}, 1.6e8),
        ({"name": "runs/mine", "candidates": [3e8, 1e9]}, None),
        ({"name": "runs/mine"}, None),
        ({"name": "yuhuili/EAGLE3-LLaMA3.1-Instruct-8B", "candidates": [8e9]}, None),
    ],
)
def test_the_size_of_a_named_draft(draft, size):
    assert named_draft(config(draft=draft), "total").size == pytest.approx(size)


@pytest.mark.parametrize(
    ("sections", "size", "model"),
    [
        ({"draft": {"name": LLAMA, "candidates": [1e9]}}, 1e9, LLAMA),
        ({"draft": {"candidates": [1.24e9]}}, 1.24e9, LLAMA),
        ({"draft": {"candidates": [1.24e9]}, "target": {"name": "Qwen/Qwen2.5-72B"}}, 1.24e9, None),
        (
            {"draft": {"candidates": [3.1e9]}, "target": {"name": "Qwen/Qwen2.5-72B"}},
            3.1e9,
            "Qwen/Qwen2.5-3B",
        ),
        # By the size in its name, where the family is known.
        (
            {"draft": {"candidates": [1.5e9]}, "target": {"name": "Qwen/Qwen2.5-72B"}},
            1.5e9,
            "Qwen/Qwen2.5-1.5B",
        ),
        ({"draft": {"candidates": [1.5e9]}}, 1.5e9, None),
        # OPT has no target of 70B; a draft that [draft] describes is one's own, and so is one that
        # is to be trained.
        ({"draft": {"candidates": [1.25e8]}}, 1.25e8, None),
        (
            {"draft": {"candidates": [1.25e8]}, "target": {"params": 30e9}},
            1.25e8,
            "facebook/opt-125m",
        ),
        ({"draft": {"candidates": [1.24e9], "tokens": 3e12}}, 1.24e9, None),
        ({"draft": {"candidates": [1.24e9], "name": "runs/mine"}}, 1.24e9, None),
        ({"draft": {"candidates": [1.24e9, 1.6e8], "name": "a/b-160m"}}, 1.24e9, LLAMA),
        ({"draft": {"candidates": [1.24e9]}, "variables": {"draft_tokens": "free"}}, 1.24e9, None),
    ],
)
def test_candidates_that_are_published_models(sections, size, model):
    found = model_of(config(**sections), size, "total")
    assert (found and found.name) == model


def test_an_acceptance_belongs_to_its_candidate():
    of = {"candidates": [1.24e9], "acceptance": 0.7}
    for name, another in (
        (LLAMA, False),
        ("runs/mine", False),
        ("Qwen/Qwen3-0.6B", True),
        ("a/b-160m", True),
    ):
        asked = asked_drafts(config(draft=of | {"name": name}), "total")
        assert asked.measured_with_another == another


def test_the_one_draft_of_a_problem_has_the_shape_of_its_model():
    made = build(config(draft={"candidates": [1.24e9], "acceptance": 0.7}, hardware={"devices": 4}))
    assert made.sizes.model.name == LLAMA
    assert float(made.inputs.serving.draft_shape.layers) == 16
    assert made.sizes.in_design(made.inputs.fixed, "draft_params").total == 1.236e9
    assert made.sizes.stated(made.inputs.fixed, "draft_params") == 1.236e9
    assert float(made.inputs.fixed.draft_tokens) == 9e12
    # Where the size is chosen there is no one draft.
    assert build(config(draft={"candidates": [1.24e9]})).inputs.serving.draft_shape is None
    named = build(config(draft={"name": LLAMA}, variables={"lookahead": "free"}))
    assert np.isclose(float(named.inputs.fixed.draft_params), float(named.sizes.model.shape.params))
