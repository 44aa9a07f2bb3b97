"""Published checkpoints against Hugging Face transformers: logits, cached decoding, greedy continuations; and what is refused."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from published_checkpoints import character_tokenizer, copy_checkpoint

from sdsl_jax.checkpoints.interop import open_checkpoint
from sdsl_jax.checkpoints.loading import (
    LoadOptions,
    load_model,
    load_published,
    require_ignored,
)
from sdsl_jax.decoding import Model, Sampling, autoregress, speculate
from sdsl_jax.errors import SdslError
from sdsl_jax.models import count, forward, init_cache

load_file = pytest.importorskip("safetensors.numpy").load_file
save_file = pytest.importorskip("safetensors.numpy").save_file

FOLDER = Path(__file__).parent / "published"
CASES = sorted(p.parent.name for p in FOLDER.glob("*/config.json"))
# Of the largest logit. Float32 sums of some tens of products, in another order, differ by a few
# 1e-7 in each of a dozen layers.
CLOSE = 1e-4


def load(folder: Path, **options) -> Model:
    checkpoint = open_checkpoint(folder)
    return Model(checkpoint.config, checkpoint.load(**options))


def logits_of(model: Model, ids):
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(forward, static_argnums=0)(model.config, model.params, ids)[0])


def require_close(mine, theirs):
    assert np.abs(mine - theirs).max() <= CLOSE * np.abs(theirs).max()


# Learned positions, scaled rotary ones, and norms behind the residual stream; the other families in
# the full check, and all variants before a release; their logits are compared always.
SLOW, RELEASE = pytest.mark.slow, pytest.mark.release
MAIN = {"gpt2", "llama-3", "opt-post-norm"}
FAMILIES = {*MAIN, "pythia", "qwen2", "qwen3", "seed-oss"}
SOME = [
    pytest.param(n, marks=[] if n in MAIN else SLOW if n in FAMILIES else RELEASE) for n in CASES
]


@pytest.fixture
def case(request):
    return FOLDER / request.param, dict(np.load(FOLDER / request.param / "reference.npz"))


every_case = pytest.mark.parametrize("case", CASES, indirect=True)
some_cases = pytest.mark.parametrize("case", SOME, indirect=True)


def test_there_is_a_case_of_every_family():
    kinds = {
        json.loads((FOLDER / name / "config.json").read_text())["model_type"] for name in CASES
    }
    assert kinds == {"gpt2", "gpt_neox", "llama", "opt", "qwen2", "qwen3", "seed_oss"}


@every_case
def test_logits_equal_those_of_transformers(case):
    folder, reference = case
    model = load(folder)
    require_close(logits_of(model, reference["ids"]), reference["logits"])
    assert count(model.config, 0).total == sum(leaf.size for leaf in jax.tree.leaves(model.params))


@some_cases
def test_cached_decoding_gives_the_same_logits(case):
    """Rows that run ahead of one another, fed in pieces of several widths."""
    folder, reference = case
    model, ids = load(folder), reference["ids"]
    step = jax.jit(forward, static_argnums=0)
    with jax.default_matmul_precision("highest"):
        cache = init_cache(model.config, len(ids), ids.shape[1] + 2)
        _, cache = step(model.config, model.params, jnp.asarray(ids[:, :5]), None, cache)
        rows = np.arange(len(ids))[:, None]
        for start, width in ((3, 4), (7, 1), (8, 9)):
            at = start + np.arange(3)[:, None] + np.arange(width)
            found, cache = step(
                model.config, model.params, jnp.asarray(ids[rows, at]), jnp.asarray(at), cache
            )
            require_close(np.asarray(found), reference["logits"][rows, at])


@pytest.mark.parametrize(
    "case",
    [pytest.param(n, marks=SLOW if n in FAMILIES else RELEASE) for n in CASES],
    indirect=True,
)
def test_greedy_continuations_are_equal_with_and_without_a_draft(case):
    folder, reference = case
    model = load(folder)
    prompt, continued = reference["ids"][:, :7], reference["continued"]
    new = continued.shape[1] - prompt.shape[1]
    plain = autoregress(model, prompt, new_tokens=new, sampling=Sampling(temperature=0))
    np.testing.assert_array_equal(plain.tokens, continued)
    both = speculate(
        model, model, prompt, lookahead=3, new_tokens=new, sampling=Sampling(temperature=0)
    )
    np.testing.assert_array_equal(both.tokens[:, : continued.shape[1]], continued)


@pytest.mark.parametrize(
    "case",
    [pytest.param(n, marks=SLOW if n in FAMILIES else RELEASE) for n in CASES],
    indirect=True,
)
def test_fresh_checkpoints_of_transformers_agree_as_well(case, tmp_path):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from checkpoints.published.make import make

    reference = make(case[0].name, tmp_path / "checkpoint", seed=1)
    require_close(logits_of(load(tmp_path / "checkpoint"), reference["ids"]), reference["logits"])


@some_cases
def test_weights_are_read_into_the_type_that_is_asked_for(case):
    folder, reference = case
    model = load(folder, dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(model.params)} == {jnp.dtype(jnp.bfloat16)}
    theirs = reference["logits"]
    # 8 bits of mantissa, through two blocks.
    assert np.abs(logits_of(model, reference["ids"]) - theirs).mean() <= 0.05 * np.abs(theirs).max()


@pytest.fixture
def checkpoint(tmp_path):
    """A copy of a case that may be damaged, and what opening it says."""

    def copied(name="llama-3"):
        folder = tmp_path / str(len(list(tmp_path.iterdir()))) / name
        shutil.copytree(FOLDER / name, folder)
        return folder

    return copied


def refused(folder: Path, *words: str) -> None:
    """Opening the folder fails with one sentence that holds these words."""
    with pytest.raises(SdslError) as caught:
        open_checkpoint(folder).load()
    for word in words:
        assert word in str(caught.value)
    assert "\n" not in str(caught.value)


def edit(folder: Path, **changes) -> None:
    config = json.loads((folder / "config.json").read_text())
    config |= changes
    (folder / "config.json").write_text(
        json.dumps({k: v for k, v in config.items() if v != "absent"})
    )


def change_tensors(path: Path, change) -> None:
    tensors = load_file(path)
    change(tensors)
    save_file(tensors, path, metadata={"format": "pt"})


def test_missing_and_truncated_files_are_named(checkpoint):
    folder = checkpoint()
    shard = sorted(folder.glob("model-*"))[1]
    shard.write_bytes(shard.read_bytes()[:-100])
    refused(folder, str(shard), "truncated")
    shard.unlink()
    refused(folder, str(shard), "is missing")
    for path in folder.glob("model-*"):
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    refused(folder, str(folder), "neither model.safetensors nor model.safetensors.index.json")
    (folder / "config.json").unlink()
    refused(folder, str(folder / "config.json"), "cannot be read")
    refused(folder / "nowhere", "does not exist")


def test_pickles_are_never_opened(checkpoint):
    folder = checkpoint("gpt2")
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04cos\nsystem\n(S'touch /tmp/x'\ntR.")
    refused(folder, "pytorch_model.bin, a pickle", "never read")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("pytorch_model-00001-of-00002.bin", "a pickle"),
        ("consolidated.00.pth", "a pickle"),
        ("model.ckpt", "a pickle"),
        ("model-00001-of-00002.safetensors", "an index is needed"),
        ("model.gguf", "give that file itself"),
        ("tf_model.h5", "weights of TensorFlow are not read"),
        ("flax_model.msgpack", "weights of Flax are not read"),
    ],
)
def test_other_files_of_weights_are_named(checkpoint, name, words):
    folder = checkpoint("gpt2")
    (folder / "training_args.bin").write_bytes(b"x")
    (folder / "model.safetensors").rename(folder / name)
    refused(folder, name, words)


POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 12\n"


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_pointers_of_git_lfs_are_named(checkpoint, name):
    folder = checkpoint("gpt2")
    character_tokenizer().save(str(folder / "tokenizer.json"))
    (folder / name).write_text(POINTER)
    with pytest.raises(SdslError, match=rf"{name} is a Git LFS pointer, not the file itself"):
        load_model(folder)


@pytest.mark.parametrize(
    ("name", "by"),
    [
        ("qweight", "GPTQ or AWQ"),
        ("weight_packed", "compressed-tensors"),
        ("weight_scale_inv", "fp8"),
        ("absmax", "bitsandbytes"),
        ("biases", "MLX"),
    ],
)
def test_tensors_of_quantised_weights_are_named(checkpoint, name, by):
    folder = checkpoint("smollm2")
    tensor = f"model.layers.0.mlp.up_proj.{name}"
    change_tensors(folder / "model.safetensors", lambda t: t.update({tensor: np.ones(2, np.int32)}))
    refused(folder, tensor, f"quantised by {by}")


def test_a_head_that_is_missing_names_the_setting(checkpoint):
    folder = checkpoint("smollm2")
    edit(folder, tie_word_embeddings=False)
    refused(folder, "lacks the tensor lm_head.weight", "set tie_word_embeddings to true")


def test_settings_that_nobody_knows_are_recorded_and_others_can_be_left_out(checkpoint):
    folder = checkpoint("smollm2")
    edit(folder, my_gate=3, logits_scaling=8.0)
    refused(folder, "logits_scaling", "is 8.0", "--ignore-key logits_scaling")
    opened = open_checkpoint(folder, ["logits_scaling", "absent"])
    assert (opened.unknown_settings, opened.ignored_settings) == (("my_gate",), ("logits_scaling",))
    assert "my_gate" in opened.warnings[0]
    assert open_checkpoint(FOLDER / "smollm2").warnings == ()


def test_paths_that_are_no_model_are_named(tmp_path, monkeypatch, checkpoint):
    monkeypatch.chdir(tmp_path)
    cache = tmp_path / "hub" / "models--Qwen--Qwen2.5-0.5B"
    revision = cache / "snapshots" / "0a1b"
    revision.mkdir(parents=True)
    adapter = checkpoint("gpt2")
    (adapter / "adapter_config.json").write_text('{"base_model_name_or_path": "meta/base"}')
    bare = tmp_path / "bare"
    bare.mkdir()
    (bare / "consolidated.00.pth").write_bytes(b"x")
    ggufs = tmp_path / "ggufs"
    ggufs.mkdir()
    (ggufs / "m.gguf").write_bytes(b"GGUF")
    for path, words in (
        (
            Path("Qwen/Qwen2.5-0.5B"),
            "download it first (hf download Qwen/Qwen2.5-0.5B --local-dir DIR)",
        ),
        (cache, f"give the folder of one revision in it: {revision}"),
        (
            cache.parent,
            f"is the cache of a hub; give the folder of one model in it, such as {revision}",
        ),
        (adapter, "an adapter (adapter_config.json) of meta/base, which is not read; merge it"),
        (bare, "holds consolidated.00.pth but no config.json"),
        (ggufs, "holds m.gguf but no config.json; give the file itself"),
        (FOLDER / "gpt2" / "model.safetensors", "is one file of a model; give the folder"),
        (FOLDER / "gpt2" / "config.json", "is one file of a model; give the folder"),
        (Path("nowhere"), "the model folder nowhere does not exist"),
        (Path("x" * 5000), "cannot be read"),
    ):
        with pytest.raises(SdslError) as caught:
            load_model(path)
        assert words in str(caught.value)


def test_an_index_cannot_lead_out_of_the_folder(checkpoint):
    folder = checkpoint()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    name = next(iter(index["weight_map"]))
    index["weight_map"][name] = "../secret.safetensors"
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, name, "../secret.safetensors", "the name of a file beside it")


def test_an_index_that_promises_too_much_is_refused(checkpoint):
    folder = checkpoint()
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    files = sorted(set(index["weight_map"].values()))
    moved = next(name for name, file in index["weight_map"].items() if file == files[0])
    index["weight_map"][moved] = files[1]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, files[1], f"lacks the tensor {moved}")


def test_two_sets_of_weights_in_one_folder_are_refused(checkpoint):
    folder = checkpoint()
    shutil.copy(FOLDER / "smollm2" / "model.safetensors", folder)
    refused(folder, "holds both model.safetensors and model.safetensors.index.json")


def test_a_bare_model_is_found_by_its_own_prefix(checkpoint):
    """OPT without its head is saved with `decoder.` where the whole one has `model.decoder.`."""
    folder = checkpoint("opt")
    change_tensors(
        folder / "model.safetensors",
        lambda t: [t.update({name.removeprefix("model."): t.pop(name)}) for name in list(t)],
    )
    assert load(folder).config == load(FOLDER / "opt").config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"model_type": "mamba"}, ("model_type", "'mamba'", "one of gpt2, gpt_neox, llama")),
        ({"model_type": "absent"}, ("model_type", "is missing")),
        ({"hidden_size": "absent"}, ("hidden_size", "is missing")),
        ({"hidden_size": "wide"}, ("hidden_size", "'wide'", "a whole number of at least 1")),
        ({"num_hidden_layers": 0}, ("num_hidden_layers", "is 0")),
        ({"hidden_act": "swiglu"}, ("hidden_act", "'swiglu'", "'silu'")),
        ({"num_key_value_heads": 3}, ("config.json", "4 query heads cannot share 3")),
        (
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}},
            ("rope_parameters.rope_type", "'dynamic'"),
        ),
        (
            {"rope_parameters": {"rope_type": "llama3", "factor": 2.0}},
            ("rope_parameters.low_freq_factor", "is missing"),
        ),
        (
            {"quantization_config": {"bits": 4, "quant_method": "gptq"}},
            ("quantization_config", "quantised by gptq"),
        ),
        (
            {"quantization": {"bits": 4, "group_size": 64}},
            ("quantization", "as MLX writes it", "not read"),
        ),
        (
            {"model_type": "mixtral", "num_local_experts": 8},
            ("'mixtral'", "a mixture of experts, which is not read"),
        ),
        ({"hidden_size": 10**12}, ("hidden_size", "at most 2,147,483,647")),
        (
            {"head_dim": 2**30, "num_attention_heads": 2**30},
            ("heads times head size", "no axis of a tensor"),
        ),
        (
            {"rope_parameters": {"factor": 4.0}},
            ("rope_parameters.rope_type", "given beside factor"),
        ),
        (
            {"rope_parameters": {"rope_type": "linear", "type": "yarn", "factor": 2.0}},
            ("rope_parameters.type", "'linear'"),
        ),
        (
            {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.5}},
            ("partial_rotary_factor is 0.5",),
        ),
        ({"partial_rotary_factor": 0.5}, ("partial_rotary_factor is 0.5",)),
        ({"sliding_window": 4}, ("sliding_window", "attention here sees everything")),
        # Contradictions between the configuration and the weights.
        ({"model_type": ["llama"]}, ("model_type", "one of gpt2")),
        (
            {"num_hidden_layers": 10**8},
            ("num_hidden_layers", "is 100000000; the files hold only 21 tensors"),
        ),
        (
            {"layer_types": ["full_attention", "sliding_attention"]},
            ("layer_types", "attention here sees everything"),
        ),
        ({"num_hidden_layers": 3}, ("lacks the tensor model.layers.2.", "config.json implies")),
        (
            {"num_hidden_layers": 1},
            ("model.layers.1.", "has no place in the model that config.json describes"),
        ),
        (
            {"intermediate_size": 41},
            ("gate_proj.weight", "has the shape [40, 24]", "implies [41, 24]"),
        ),
        ({"vocab_size": 54}, ("embed_tokens.weight", "[53, 24]", "[54, 24]")),
        ({"attention_bias": True}, ("lacks the tensor model.layers.0.self_attn.q_proj.bias",)),
        ({"tie_word_embeddings": True}, ("lm_head.weight", "differs from", "tie_word_embeddings")),
        (
            {"use_sliding_window": True, "sliding_window": 4},
            ("sliding_window", "attention here sees everything"),
        ),
    ],
)
def test_configurations_that_are_wrong_or_contradict_the_weights_are_refused(
    checkpoint, changes, words
):
    folder = checkpoint()
    edit(folder, **changes)
    refused(folder, "config.json", *words)


def test_a_config_that_is_no_object_is_refused(checkpoint):
    folder = checkpoint()
    (folder / "config.json").write_text("[1]")
    refused(folder, "holds no JSON object")
    (folder / "config.json").write_text("{")
    refused(folder, "is not valid JSON")


def test_tensors_of_another_type_or_place_are_refused(checkpoint):
    folder = checkpoint("smollm2")
    path = folder / "model.safetensors"
    change_tensors(
        path, lambda t: t.update({"model.norm.weight": t["model.norm.weight"].astype(np.int8)})
    )
    refused(folder, "model.norm.weight", str(path), "type I8")
    change_tensors(
        path,
        lambda t: t.update(
            {"model.norm.weight": np.ones(24, np.float32), "model.extra": np.ones(2)}
        ),
    )
    refused(folder, "model.extra", str(path), "has no place")
    change_tensors(path, lambda t: (t.pop("model.extra"), t.pop("model.norm.weight")))
    refused(folder, "lacks the tensor model.norm.weight of shape [24]")


def test_what_older_files_hold_besides_is_passed_over(checkpoint):
    """Buffers of masks and frequencies, and a head that is tied."""
    folder = checkpoint("pythia")
    buffers = {
        "gpt_neox.layers.0.attention.bias": np.ones((1, 1, 4, 4), bool),
        "gpt_neox.layers.1.attention.masked_bias": np.ones((), np.float32),
        "gpt_neox.layers.0.attention.rotary_emb.inv_freq": np.ones(2, np.float32),
    }
    change_tensors(folder / "model.safetensors", lambda t: t.update(buffers))
    assert load(folder).config == load(FOLDER / "pythia").config
    tied = checkpoint("gpt2")
    change_tensors(
        tied / "model.safetensors",
        lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].copy()}),
    )
    assert load(tied).config.tie_embeddings


def test_settings_of_transformers_4_mean_what_those_of_5_do(checkpoint):
    """Rotary settings stood beside each other there, and the scaling's kind was called `type` at first."""
    for name, older in (
        ("llama-3", {"rope_theta": 500.0, "rope_scaling": "same"}),
        ("qwen2-untied-yarn", {"rope_theta": 500.0, "rope_scaling": "same"}),
        ("llama-linear", {"rope_scaling": {"type": "linear", "factor": 2.0}}),
        (
            "qwen2",
            {"rope_theta": 1e6, "rope_scaling": None, "sliding_window": 4, "max_window_layers": 1},
        ),
        (
            "qwen2",
            {
                "rope_theta": 1e6,
                "use_sliding_window": True,
                "sliding_window": 4,
                "max_window_layers": 2,
            },
        ),
        ("pythia", {"rotary_emb_base": 10000, "rotary_pct": 0.25}),
    ):
        folder = checkpoint(name)
        config = json.loads((folder / "config.json").read_text())
        scaling = config.pop("rope_parameters")
        base = {key: scaling for key in older if older[key] == "same"}
        (folder / "config.json").write_text(json.dumps(config | older | base))
        assert open_checkpoint(folder).config == open_checkpoint(FOLDER / name).config


def test_a_scaling_that_was_added_in_the_older_form_holds(checkpoint):
    """As in transformers, where both forms are given."""
    folder = checkpoint("qwen2")
    edit(folder, rope_scaling={"type": "linear", "factor": 4.0})
    refused(
        folder,
        "rope_parameters.rope_theta",
        "1000000.0",
        "it must be 10000, as beside rope_scaling",
    )
    edit(folder, rope_theta=1e6)
    assert open_checkpoint(folder).config.rope_scaling.factor == 4.0
    assert open_checkpoint(folder).config.rope_theta == 1e6


def test_rows_that_outgrow_learned_positions_are_refused():
    model = load(FOLDER / "opt")
    with pytest.raises(SdslError, match="come to 33 positions; the target knows only 32"):
        autoregress(model, np.ones((1, 3), int), new_tokens=30)


@pytest.mark.slow
def test_weights_can_be_split_over_devices_without_changing_what_is_decoded(tmp_path):
    """In a process of its own, with four devices of the CPU."""
    code = """
import sys, jax, numpy as np
from sdsl_jax.config import ParallelConfig
from sdsl_jax.models import abstract_params
from sdsl_jax.checkpoints.interop import open_checkpoint
from sdsl_jax.decoding import Model, Sampling, autoregress
from sdsl_jax.checkpoints import layout as parallel
parallel._SMALL = 2  # split even these
c = open_checkpoint(sys.argv[1])
layout = parallel.make_layout(ParallelConfig(fsdp=4), jax.devices())
params = c.load(shardings=layout.state_shardings(abstract_params(c.config)))
assert any(len(x.sharding.device_set) == 4 and not x.is_fully_replicated for x in jax.tree.leaves(params))
ids = np.load(sys.argv[1] + "/reference.npz")
done = autoregress(Model(c.config, params), ids["ids"][:, :7], new_tokens=12, sampling=Sampling(temperature=0))
assert (np.asarray(done.tokens) == ids["continued"]).all()
"""
    flags = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=4"
    done = subprocess.run(
        [sys.executable, "-c", code, str(FOLDER / "llama-2")],
        env=os.environ | {"XLA_FLAGS": flags},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr


def test_a_vouched_setting_that_no_file_has_is_misspelt(tmp_path):
    vouched = ("hidden_dropout", "attention_dropout")
    loaded = load_published(
        copy_checkpoint("llama-2", tmp_path / "m"), LoadOptions(ignore_keys=vouched)
    )
    with pytest.raises(
        SdslError, match="--ignore-key names hidden_dropout, which no file of these models holds"
    ):
        require_ignored(vouched, loaded)
    require_ignored(("attention_dropout",), loaded)
