"""Which models count as one: by configuration, all weights and tokenizer, wherever and in whichever format they lie."""

import copy
import dataclasses
import json
import math
import shutil

import jax
import ml_dtypes
import numpy as np
import pytest
from published_checkpoints import LETTERS, character_tokenizer, copy_checkpoint
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from sdsl_jax.checkpoints import storage
from sdsl_jax.checkpoints.identity import are_different, array_digest, identity
from sdsl_jax.checkpoints.interop import export_llama
from sdsl_jax.checkpoints.loading import LoadOptions, load_model
from sdsl_jax.checkpoints.model_folder import load_model_folder, write_model_folder
from sdsl_jax.config import DataConfig
from sdsl_jax.data.prompts import Prompts
from sdsl_jax.data.tokenizer import BPETokenizer, ByteTokenizer, hugging_face_json
from sdsl_jax.decoding import Model
from sdsl_jax.errors import SdslError
from sdsl_jax.measurement.pair import PairSettings
from sdsl_jax.measurement.pair_records import MEASUREMENTS, require_same_models
from sdsl_jax.measurement.pair_warnings import input_warnings
from sdsl_jax.models import ModelConfig, count, init_params
from sdsl_jax.records import ModelRecord, write_json, write_table

load_file = pytest.importorskip("safetensors.numpy").load_file
save_file = pytest.importorskip("safetensors.numpy").save_file


@pytest.fixture
def folder(tmp_path):
    return copy_checkpoint("llama-2", tmp_path / "model")


def configure(folder, **changes):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def load(folder, **reading):
    return load_model(folder, LoadOptions(**reading))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16, np.float16])
@pytest.mark.parametrize("size", [1, 3, 1000, 300_077])
def test_every_number_of_an_array_counts(dtype, size):
    """Wherever it stands: the first and the last one, and some between; and so do shape, type and order."""
    array = np.random.default_rng(size).normal(size=size).astype(dtype)
    seen = {array_digest(array)}
    for at in {0, size // 3, size // 2, size - 1}:
        changed = array.copy()
        changed[at] = -changed[at]
        seen.add(array_digest(changed))
    assert len(seen) == len({0, size // 3, size // 2, size - 1}) + 1
    assert array_digest(array) == array_digest(array.copy())
    assert array_digest(array[None]) not in seen
    assert array_digest(array.view(np.uint8)) not in seen
    if size > 1:
        assert array_digest(array[::-1]) not in seen


def test_structured_changes_of_large_arrays_are_seen():
    """Those that a sum might miss: signs of every other number or row, and rows or numbers in another order."""
    matrix = np.random.default_rng(0).normal(size=(1024, 512)).astype(np.float32)
    rows, columns = np.arange(1024)[:, None], np.arange(512)
    changed = [matrix * np.where(mask, -1, 1).astype(np.float32) for period in (2, 4, 64) for mask in (
        columns % period == 1, rows % period == 1, (rows + columns) % period == 1, (rows % period == 1) & (columns % 2 == 1)
    )]  # fmt: skip
    changed += [
        -matrix,
        matrix[::-1],
        matrix[:, ::-1],
        np.roll(matrix, 1, axis=0),
        np.roll(matrix, 2, axis=1),
    ]
    swapped = matrix.copy()
    swapped[[10, 11]] = matrix[[11, 10]]
    assert len({array_digest(x) for x in [matrix, swapped, *changed]}) == len(changed) + 2
    # Changes that cancel along rows and along columns: one-hot columns swapped, and the signs at
    # four corners.
    for dtype in (np.float16, np.float32, np.float64):
        seen = set()
        for places in ([0, 1], [1, 0]):
            one_hot = np.zeros((1024, 1020), dtype)
            one_hot[[4, 8], np.array(places) * 4] = 1
            seen.add(array_digest(one_hot))
        corners = np.ones((1024, 1024), dtype)
        seen.add(array_digest(corners))
        corners[np.ix_([2, 6], [3, 7])] = -1
        seen.add(array_digest(corners))
        assert len(seen) == 4


def test_a_copy_a_link_and_another_order_of_shards_are_the_same_model(folder, tmp_path):
    known = identity(load(folder))
    assert known.startswith("model-v2:")
    assert load(folder).record.params_digest == known
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "link").symlink_to(folder)
    assert identity(load(tmp_path / "copy")) == identity(load(tmp_path / "link")) == known
    # What changes neither computation nor tokens changes nothing: special tokens and templates are
    # asked for, not part of it.
    assert identity(load(folder, special_tokens=False)) == known
    configure(folder, max_position_embeddings=4096, transformers_version="9.9")
    assert identity(load(folder)) == known
    tensors = load_file(folder / "model.safetensors")
    save_file(dict(reversed(tensors.items())), folder / "model.safetensors")
    assert identity(load(folder)) == known


def test_configuration_weights_tokenizer_and_type_make_another_model(folder):
    known = [
        identity(load(folder)),
        identity(load(folder, dtype="bfloat16")),
        identity(load(folder, dtype="float16")),
    ]
    tensors = load_file(folder / "model.safetensors")
    last = sorted(tensors)[-1]
    for at in (0, -1):
        changed = {name: value.copy() for name, value in tensors.items()}
        changed[last].reshape(-1)[at] += 1
        save_file(changed, folder / "model.safetensors")
        known.append(identity(load(folder)))
    save_file(tensors, folder / "model.safetensors")
    assert identity(load(folder)) == known[0]
    original = (folder / "config.json").read_text()
    for changes in (
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 10_000.0}},
        {"rope_parameters": {"rope_type": "default", "rope_theta": 20_000.0}},
        {"rms_norm_eps": 1e-3},
        {"hidden_act": "gelu"},
    ):
        configure(folder, **changes)
        known.append(identity(load(folder)))
        (folder / "config.json").write_text(original)
    character_tokenizer(LETTERS[::-1]).save(str(folder / "tokenizer.json"))
    known.append(identity(load(folder)))
    lowercase = character_tokenizer()
    lowercase.normalizer = normalizers.Lowercase()
    lowercase.save(str(folder / "tokenizer.json"))
    known.append(identity(load(folder)))
    assert len(set(known)) == len(known)
    assert Tokenizer.from_file(str(folder / "tokenizer.json")).get_vocab_size() == 53


def test_rules_of_the_tokenizer_that_no_short_text_shows_make_another_model(folder):
    """Merges of rare words, words that merges do not reach, spaces beside an added token."""
    made = Tokenizer(models.BPE(unk_token="?"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.BpeTrainer(
        vocab_size=53, special_tokens=["?", "<user>"], show_progress=False
    )
    made.train_from_iterator(["quokka quokka zebra zebu jumps house"], trainer)
    original = json.loads(made.to_str())

    def known(change) -> str:
        values = copy.deepcopy(original)
        change(values["model"]["merges"], values)
        (folder / "tokenizer.json").write_text(json.dumps(values))
        return identity(load(folder))

    def as_text(merges, _):
        merges[:] = [" ".join(merge) for merge in merges]

    assert known(as_text) == known(lambda *_: None)
    changes = (
        lambda *_: None,
        lambda merges, _: merges.pop(),
        lambda merges, _: merges.reverse(),
        lambda _, values: values["model"].update(ignore_merges=True),
        lambda _, values: values["added_tokens"][1].update(rstrip=True),
    )
    assert len({known(change) for change in changes}) == len(changes)


def own(folder, seed=1, tokenizer=None, **changes):
    tokenizer = tokenizer or ByteTokenizer()
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        width=8,
        layers=1,
        heads=2,
        kv_heads=1,
        head_dim=4,
        hidden=12,
        **changes,
    )
    params = init_params(config, jax.random.key(seed))
    record = ModelRecord(
        "m", "draft", 400, count(config, 0).total, 1000, seed, 2.5, 12.2, storage.digest(params)
    )
    write_model_folder(folder, config, params, tokenizer, record, DataConfig(sequence_length=64))
    return load_model_folder(folder)


def test_models_of_ours_are_told_apart_by_their_configuration_too(tmp_path):
    one, other = own(tmp_path / "one"), own(tmp_path / "other", rope_theta=500.0)
    assert one.record.params_digest == other.record.params_digest == storage.digest(one.params)
    assert are_different(identity(one), identity(other))
    assert identity(one) == identity(load_model_folder(tmp_path / "one"))
    bpe = own(tmp_path / "bpe", tokenizer=BPETokenizer.train("the house of the people " * 9, 262))
    for model in (one, bpe):
        out = model.folder.parent / f"export-{model.folder.name}"
        export_llama(
            Model(model.config, model.params), out, tokenizer=hugging_face_json(model.tokenizer)[0]
        )
        assert identity(load(out)) == identity(model)


def test_what_older_records_do_not_tell_is_neither_same_nor_different():
    assert not are_different("ab" * 32, "model-v2:" + "cd" * 32)
    assert not are_different("", "model-v2:" + "cd" * 32)
    assert are_different("model-v2:ab", "model-v2:cd")
    assert are_different("ab" * 32, "cd" * 32)
    assert not are_different("ab", "ab")


def test_the_warning_of_one_model_is_given_for_one_model_only(folder, tmp_path):
    prompts = Prompts(np.zeros((8, 3), np.int32), np.full(8, 3), "p", 8, 0)

    def warned(draft, target):
        found = input_warnings(draft, target, prompts, PairSettings(), 8)
        return any("the same model: every draft is accepted" in text for text in found)

    shutil.copytree(folder, tmp_path / "copy")
    assert warned(load(folder), load(tmp_path / "copy"))
    configure(tmp_path / "copy", rms_norm_eps=1e-3)
    assert not warned(load(folder), load(tmp_path / "copy"))
    one, other = own(tmp_path / "one"), own(tmp_path / "other", rope_theta=500.0)
    assert warned(one, own(tmp_path / "again"))
    assert not warned(one, other)


def test_two_models_of_one_name_do_not_share_records(folder, tmp_path):
    out, other = tmp_path / "out", tmp_path / "other" / "model"
    shutil.copytree(folder, other)
    configure(other, rms_norm_eps=1e-3)
    one, another = load(folder), load(other)
    require_same_models(out, one, one)  # a folder that is not there yet holds nothing
    refused = pytest.raises(
        SdslError, match=f"would hold two models of the name model, of which {other} is one"
    )
    with refused:
        require_same_models(out, one, another)
    write_table(out, "models", [dataclasses.replace(one.record, loss_nats=1.0, perplexity=2.7)])
    require_same_models(out, one)
    with refused:
        require_same_models(out, another)
    # Records of before whose digest looked at some of the weights: nobody knows which model it was.
    write_table(
        out, "models", [dataclasses.replace(one.record, params_digest="ab" * 32, loss_nats=1.0)]
    )
    require_same_models(out, another)
    write_table(out, "models", [dataclasses.replace(one.record, params_total=5, loss_nats=1.0)])
    with refused:
        require_same_models(out, another)


def test_models_of_ours_with_one_name_and_equal_weights_do_not_share_records(tmp_path):
    """The table of models has the digest of the weights alone; what was answered has the identity."""
    one, other, out = (
        own(tmp_path / "one"),
        own(tmp_path / "other", rope_theta=500.0),
        tmp_path / "out",
    )
    write_table(out, "models", [one.record])
    require_same_models(out, other)
    about = {"model_id": "m", "identity": identity(one)}
    write_json(out / MEASUREMENTS, [{"draft": {"model_id": "ngram"}, "target": about}])
    require_same_models(out, one)
    with pytest.raises(SdslError, match="would hold two models of the name m"):
        require_same_models(out, other)
    assert math.isclose(one.record.loss_nats, 2.5)
