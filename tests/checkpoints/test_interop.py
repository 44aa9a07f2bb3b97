"""Export to a Hugging Face folder: names, shapes and settings without torch; logits and greedy tokens with it (slow)."""

import dataclasses
import json
import sys

import jax
import numpy as np
import pytest

from sdsl_jax.checkpoints.interop import export_llama, open_checkpoint
from sdsl_jax.data.published import PublishedTokenizer
from sdsl_jax.data.tokenizer import BPETokenizer, ByteTokenizer, hugging_face_json, same_tokens
from sdsl_jax.decoding import Model, Sampling, autoregress
from sdsl_jax.errors import SdslError
from sdsl_jax.models import ModelConfig, count, forward, init_params

VARIANTS = {
    "grouped": {},
    "untied": {"tie_embeddings": False},
    "llama": {"qk_norm": False},
    "llama_untied": {"qk_norm": False, "tie_embeddings": False, "kv_heads": 4},
    "wide_heads": {"head_dim": 14, "rope_theta": 500.0, "norm_epsilon": 1e-3},
    "llama_narrow_heads": {
        "qk_norm": False,
        "head_dim": 6,
        "rope_theta": 500.0,
        "norm_epsilon": 1e-3,
    },
    "one_head": {"heads": 1, "kv_heads": 1, "layers": 1},
}


def random_model(config: ModelConfig, seed: int = 0) -> Model:
    """Parameters that are all random, norms as well, and large enough that every part of the model shows in the logits."""
    params = init_params(config, jax.random.key(seed))
    rng = np.random.default_rng(seed)
    return Model(
        config,
        jax.tree.map(lambda x: x * rng.uniform(0.5, 2.0, x.shape).astype(np.float32), params),
    )


# Every variant is run by the full check.
MAIN = ("grouped", "llama_untied", "wide_heads")
SOME = [pytest.param(name, marks=[] if name in MAIN else pytest.mark.slow) for name in VARIANTS]


@pytest.fixture(params=SOME)
def model(request, small_model):
    return random_model(dataclasses.replace(small_model, **VARIANTS[request.param]))


def test_the_folder_holds_every_parameter_under_its_published_name(model, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    c = model.config
    folder = export_llama(model, tmp_path / "model")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]
    assert sorted(p.name for p in folder.iterdir()) == [
        "config.json",
        "generation_config.json",
        "model.safetensors",
    ]
    tensors = safetensors.load_file(folder / "model.safetensors")
    query, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    shapes = {
        "model.embed_tokens": (c.vocab_size, c.width),
        "model.norm": (c.width,),
        "lm_head": (c.vocab_size, c.width),
    }
    for i in range(c.layers):
        layer = {
            "input_layernorm": (c.width,),
            "post_attention_layernorm": (c.width,),
            "self_attn.q_proj": (query, c.width),
            "self_attn.k_proj": (kv, c.width),
            "self_attn.v_proj": (kv, c.width),
            "self_attn.o_proj": (c.width, query),
            "mlp.gate_proj": (c.hidden, c.width),
            "mlp.up_proj": (c.hidden, c.width),
            "mlp.down_proj": (c.width, c.hidden),
        }
        if c.qk_norm:
            layer |= {"self_attn.q_norm": (c.head_dim,), "self_attn.k_norm": (c.head_dim,)}
        shapes |= {f"model.layers.{i}.{name}": shape for name, shape in layer.items()}
    assert {name: t.shape for name, t in tensors.items()} == {
        f"{name}.weight": s for name, s in shapes.items()
    }
    assert all(t.dtype == np.float32 for t in tensors.values())
    untied = dataclasses.replace(c, tie_embeddings=False)
    assert sum(t.size for t in tensors.values()) == count(untied, 0).total


def test_the_embedding_is_multiplied_on_its_way_in_and_not_at_the_head(small_model, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    model = random_model(small_model)
    tensors = safetensors.load_file(export_llama(model, tmp_path / "model") / "model.safetensors")
    embedding = np.asarray(jax.tree.leaves(model.params["embedding"])[0])
    np.testing.assert_array_equal(tensors["lm_head.weight"], embedding)
    np.testing.assert_allclose(tensors["model.embed_tokens.weight"], 4.0 * embedding)  # width 16


def test_the_configuration_says_what_the_model_is(model, tmp_path):
    pytest.importorskip("safetensors")
    c = model.config
    folder = export_llama(model, tmp_path / "model", max_positions=77)
    config = json.loads((folder / "config.json").read_text())
    expected = {
        "architectures": ["Qwen3ForCausalLM" if c.qk_norm else "LlamaForCausalLM"],
        "head_dim": c.head_dim,
        "num_key_value_heads": c.kv_heads,
        "rope_theta": c.rope_theta,
        "rms_norm_eps": c.norm_epsilon,
        "max_position_embeddings": 77,
        "tie_word_embeddings": False,
        "eos_token_id": None,
    }
    assert {name: config[name] for name in expected} == expected
    assert config["rope_parameters"]["rope_theta"] == c.rope_theta
    assert json.loads((folder / "generation_config.json").read_text())["top_k"] == 0


def test_a_round_trip_is_exact(model, tmp_path):
    """What is read is what was written: the very model where it is tied, else one whose embedding has its factor already."""
    pytest.importorskip("safetensors")
    checkpoint = open_checkpoint(export_llama(model, tmp_path / "model", max_positions=99))
    again = Model(checkpoint.config, checkpoint.load())
    if model.config.tie_embeddings:
        assert again.config == dataclasses.replace(model.config, max_positions=99)
        assert jax.tree.all(
            jax.tree.map(lambda a, b: bool((a == b).all()), again.params, model.params)
        )
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (2, 9))
    first, second = (
        jax.jit(forward, static_argnums=0)(m.config, m.params, ids)[0] for m in (model, again)
    )
    np.testing.assert_array_equal(first, second)
    export_llama(again, tmp_path / "again")
    files = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("model", "again")]
    assert files[0] == files[1]


def test_weights_are_cut_into_files_of_the_wanted_size(small_model, tmp_path):
    pytest.importorskip("safetensors")
    model = random_model(small_model)
    folder = export_llama(model, tmp_path / "model", shard_bytes=5_000)
    files = sorted(p.name for p in folder.glob("*.safetensors"))
    assert len(files) > 2
    assert all(
        (folder / name).stat().st_size < 5_000 + 2_000 for name in files
    )  # 2,000 for the header
    params = open_checkpoint(folder).load()
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), params, model.params))
    export_llama(model, folder)  # an earlier export of several files is replaced by one
    assert [p.name for p in folder.glob("*.safetensors")] == ["model.safetensors"]


def test_an_export_that_was_trained_further_is_read_as_it_is(small_model, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    folder = export_llama(random_model(small_model), tmp_path / "model")
    tensors = safetensors.load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] += 0.01
    safetensors.save_file(tensors, folder / "model.safetensors")
    checkpoint = open_checkpoint(folder)
    assert not checkpoint.config.tie_embeddings
    head = np.asarray(jax.tree.leaves(checkpoint.load()["head"])[0])
    np.testing.assert_array_equal(head.T, tensors["lm_head.weight"])


def _weights(folder):
    safetensors = pytest.importorskip("safetensors.numpy")
    tensors = safetensors.load_file(folder / "model.safetensors")
    tensors["lm_head.weight"] += 0.01
    safetensors.save_file(tensors, folder / "model.safetensors")


def _tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


def _deleted(folder):
    (folder / "generation_config.json").unlink()


def _config(folder):
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"transformers_version": "5.0.0"}))


def _older(folder):
    content = json.loads((folder / "config.json").read_text())
    del content["sdsl_jax"]["files"]
    (folder / "config.json").write_text(json.dumps(content | {"transformers_version": "4.50.0"}))


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (_weights, "model.safetensors"),
        (_tokenizer, "tokenizer.json"),
        (_deleted, "generation_config.json"),
        (_config, "config.json"),
        (_older, "config.json"),
    ],
)
def test_an_export_that_was_changed_since_is_not_replaced(small_model, tmp_path, change, name):
    pytest.importorskip("safetensors")
    model = random_model(small_model)
    folder = export_llama(model, tmp_path / "model")
    change(folder)
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    with pytest.raises(
        SdslError,
        match=f"is an export whose {name} was changed since, .*; name another folder, or delete",
    ):
        export_llama(model, folder)
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


@pytest.mark.parametrize("kind", ["bytes", "bpe"])
def test_our_tokenizers_become_tokenizer_json(small_model, tmp_path, kind):
    """The exported file gives the same ids for any text, and is recognised as the same tokenizer."""
    pytest.importorskip("safetensors")
    text = "the people of the house, naïve 日本 \n\t the end"
    own = ByteTokenizer() if kind == "bytes" else BPETokenizer.train(text * 20, 280)
    content, end = hugging_face_json(own)
    config = dataclasses.replace(small_model, vocab_size=own.vocab_size)
    folder = export_llama(
        random_model(config), tmp_path / "model", tokenizer=content, end_token=end
    )
    read = PublishedTokenizer.load(folder)
    np.testing.assert_array_equal(read.encode(text), own.encode(text))
    assert read.decode(own.encode(text)) == text
    assert read.vocab_size == own.vocab_size
    assert read.end_ids == (0,)
    assert same_tokens(read, own)
    assert same_tokens(own, ByteTokenizer()) == (kind == "bytes")


def test_somebody_elses_checkpoint_is_never_overwritten(small_model, tmp_path):
    pytest.importorskip("safetensors")
    folder = export_llama(random_model(small_model), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    del config["sdsl_jax"]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(SdslError, match="which no export wrote"):
        export_llama(random_model(small_model, 1), folder)


def test_an_earlier_export_is_replaced_and_nothing_else_is(small_model, tmp_path):
    safetensors = pytest.importorskip("safetensors.numpy")
    folder = tmp_path / "model"
    folder.mkdir()
    export_llama(random_model(small_model, 0), folder)
    second = random_model(small_model, 1)
    export_llama(second, folder)
    head = safetensors.load_file(folder / "model.safetensors")["lm_head.weight"]
    np.testing.assert_array_equal(head, np.asarray(jax.tree.leaves(second.params["embedding"])[0]))
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(SdslError, match=r"holds notes\.txt, which no export wrote"):
        export_llama(second, folder)
    with pytest.raises(SdslError, match="is a file"):
        export_llama(second, folder / "notes.txt")
    assert (folder / "notes.txt").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model"]


def test_what_cannot_be_exported_is_refused(small_model, tmp_path, monkeypatch):
    model = random_model(small_model)
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "safetensors.numpy", None)
        with pytest.raises(SdslError, match=r"pip install 'sdsl_jax\[interop\]'"):
            export_llama(model, tmp_path / "model")
    pytest.importorskip("safetensors")
    odd = dataclasses.replace(small_model, width=18, qk_norm=False)
    with pytest.raises(
        SdslError, match="width is 18; without qk-norm it must be a multiple of its 4 heads"
    ):
        export_llama(random_model(odd), tmp_path / "model")
    with pytest.raises(SdslError, match="max_positions is 0"):
        export_llama(model, tmp_path / "model", max_positions=0)
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(
    "model",
    [
        pytest.param(n, marks=pytest.mark.slow if n in MAIN else pytest.mark.release)
        for n in VARIANTS
    ],
    indirect=True,
)
def test_transformers_gives_the_same_logits_and_the_same_greedy_tokens(model, tmp_path):
    pytest.importorskip("safetensors")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        export_llama(model, tmp_path / "model")
    )
    assert type(peer).__name__ == (
        "Qwen3ForCausalLM" if model.config.qk_norm else "LlamaForCausalLM"
    )
    ids = np.random.default_rng(0).integers(0, model.config.vocab_size, (3, 24))
    with torch.no_grad():
        theirs = peer(torch.from_numpy(ids)).logits.numpy()
    with jax.default_matmul_precision("highest"):
        ours = np.asarray(forward(model.config, model.params, ids)[0])
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(ours).max()

    continued = peer.generate(torch.from_numpy(ids), max_new_tokens=20, do_sample=False).numpy()
    decoded = autoregress(model, ids, new_tokens=20, sampling=Sampling(temperature=0))
    np.testing.assert_array_equal(np.asarray(decoded.tokens)[:, : continued.shape[1]], continued)


@pytest.mark.release
def test_transformers_takes_a_width_that_its_heads_do_not_divide(small_model, tmp_path):
    """Qwen3's configuration allows it, Llama's does not."""
    pytest.importorskip("safetensors")
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    model = random_model(dataclasses.replace(small_model, width=18))
    peer = transformers.AutoModelForCausalLM.from_pretrained(
        export_llama(model, tmp_path / "model")
    )
    ids = np.arange(10)[None]
    with torch.no_grad():
        theirs = peer(torch.from_numpy(ids)).logits.numpy()
    ours = np.asarray(forward(model.config, model.params, ids)[0])
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(ours).max()
