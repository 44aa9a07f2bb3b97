"""A study that uses the tokenizer of a published model."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from conftest import tiny
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from sdsl_jax.checkpoints import storage
from sdsl_jax.checkpoints.model_folder import load_model_folder, write_model_folder
from sdsl_jax.config import DataConfig
from sdsl_jax.data import load_dataset
from sdsl_jax.data.prompts import load_prompts
from sdsl_jax.data.published import PublishedTokenizer
from sdsl_jax.data.study_tokenizer import adopt, with_vocabulary
from sdsl_jax.data.tokenised import corpus_folder
from sdsl_jax.data.tokenizer import fingerprint
from sdsl_jax.errors import SdslError
from sdsl_jax.models import ModelConfig, count, init_params
from sdsl_jax.records import ModelRecord

TEXTS = [
    f"the house {i} of the people, <|end|> and it's the people's house. " * 3 for i in range(30)
]
SPECIAL = ["<|unknown|>", "<|begin|>", "<|end|>"]


@pytest.fixture(scope="module")
def library():
    """A byte-level BPE with special tokens, whose texts end with id 2."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=290,
        special_tokens=SPECIAL,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|begin|> $A", special_tokens=[("<|begin|>", 1)]
    )
    return tokenizer


@pytest.fixture
def model(library, tmp_path):
    """A Hugging Face folder, as far as its tokenizer goes."""
    folder = tmp_path / "model"
    folder.mkdir()
    library.save(str(folder / "tokenizer.json"))
    (folder / "config.json").write_text(json.dumps({"eos_token_id": 2}))
    return folder


@pytest.fixture
def config(model, tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in TEXTS))
    return DataConfig(
        source=str(tmp_path / "a.jsonl"),
        tokenizer=str(model),
        sequence_length=16,
        validation_fraction=0.2,
        test_fraction=0.2,
        shards=str(tmp_path / "shards"),
    )


def write_gguf(path, library):
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    vocab = sorted(library.get_vocab().items(), key=lambda item: item[1])
    writer.add_token_list([token for token, _ in vocab])
    writer.add_token_types([3 if token in SPECIAL else 1 for token, _ in vocab])
    merges = json.loads(library.to_str())["model"]["merges"]
    writer.add_token_merges([m if isinstance(m, str) else " ".join(m) for m in merges])
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def test_ids_are_those_of_the_model(config, model):
    """Nothing stands around a document, its end is the model's, and what spells a token is text."""
    published = PublishedTokenizer.load(model)
    data = load_dataset(config)
    text_of = load_dataset(dataclasses.replace(config, tokenizer="bytes")).splits
    for name, split in data.splits.items():
        text = bytes(text_of[name][:].tolist()).decode()
        parts = [published.encode_plain(part, literal=True) for part in text.split("\0")]
        expected = np.concatenate([ids for part in parts for ids in (part, [2])][:-1])
        np.testing.assert_array_equal(split[:], expected)
        assert data.tokenizer.decode(split[:]) == text
    assert data.tokenizer.vocab_size == published.vocab_size == 290


def test_a_copy_and_a_gguf_file_of_the_model_are_the_same_tokenizer(
    config, model, library, tmp_path
):
    """The corpus is found again, and a model's own tokenizer is recognised whatever its settings are."""
    copy = shutil.copytree(model, tmp_path / "copy")
    file = write_gguf(tmp_path / "m.gguf", library)
    for path in (copy, file):
        other = dataclasses.replace(config, tokenizer=str(path))
        assert corpus_folder(other) == corpus_folder(config)
        assert fingerprint(adopt(path)) == fingerprint(adopt(model))
    assert fingerprint(PublishedTokenizer.load(model)) == fingerprint(adopt(model))
    (copy / "config.json").write_text(json.dumps({"eos_token_id": 1}))
    (copy / "tokenizer.json").touch()
    other = dataclasses.replace(config, tokenizer=str(copy))
    assert corpus_folder(other) != corpus_folder(config)
    library = Tokenizer.from_str(library.to_str())
    library.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    assert fingerprint(PublishedTokenizer(library)) != fingerprint(adopt(model))


def test_the_size_of_the_vocabulary_follows(config, model):
    study = dataclasses.replace(tiny(), data=dataclasses.replace(config, sequence_length=32))
    found = with_vocabulary(study)
    assert found == dataclasses.replace(study, data=dataclasses.replace(study.data, vocab_size=290))
    assert with_vocabulary(found) == found
    assert with_vocabulary(tiny()) == tiny()
    wrong = dataclasses.replace(study, data=dataclasses.replace(study.data, vocab_size=300))
    with pytest.raises(SdslError, match=r"data.vocab_size is 300; the tokenizer of .* has 290"):
        with_vocabulary(wrong)


@pytest.mark.slow
def test_a_draft_keeps_the_tokenizer(config, model, tmp_path):
    """It loads, and finds the held-out text, where the published model is missing."""
    tokenizer = load_dataset(config).tokenizer
    c = ModelConfig(vocab_size=290, width=8, layers=1, heads=2, kv_heads=1, head_dim=4, hidden=12)
    params = init_params(c, jax.random.key(0))
    record = ModelRecord(
        "draft-x", "draft", 400, count(c, 0).total, 9, 0, 2.5, 12.2, storage.digest(params)
    )
    write_model_folder(tmp_path / "draft", c, params, tokenizer, record, config)
    wanted = dict(count=4, max_tokens=9)
    target = PublishedTokenizer.load(model, special_tokens=False)
    there = load_prompts("heldout", target, data=config, **wanted)
    windows = load_dataset(config).text("test").windows(4)[:, :9]
    np.testing.assert_array_equal(there.tokens, windows)
    shutil.rmtree(model)
    loaded = load_model_folder(tmp_path / "draft")
    assert fingerprint(loaded.tokenizer) == fingerprint(tokenizer)
    assert loaded.tokenizer.end_ids == (2,)
    text = "the house\0it's <|end|> the"
    np.testing.assert_array_equal(loaded.tokenizer.encode(text), tokenizer.encode(text))
    own = load_prompts(
        "heldout",
        loaded.tokenizer,
        data=dataclasses.replace(loaded.data, shards=config.shards),
        **wanted,
    )
    np.testing.assert_array_equal(own.tokens, there.tokens)


def test_what_is_no_tokenizer_of_a_study_is_refused(config, model):
    with pytest.raises(
        SdslError, match=r"data.tokenizer is './nowhere'; it must be 'bytes', 'bpe'"
    ):
        load_dataset(dataclasses.replace(config, tokenizer="./nowhere"))
    (model / "config.json").unlink()
    (model / "tokenizer.json").touch()
    with pytest.raises(SdslError, match="names no token that ends a text"):
        load_dataset(config)
