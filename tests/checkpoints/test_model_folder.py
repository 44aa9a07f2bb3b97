import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from conftest import tiny

from sdsl_jax.checkpoints import storage
from sdsl_jax.checkpoints.loading import load_model
from sdsl_jax.checkpoints.model_folder import load_model_folder, write_model_folder
from sdsl_jax.config import DataConfig
from sdsl_jax.data import load_dataset
from sdsl_jax.data.tokenizer import BPETokenizer, ByteTokenizer, fingerprint
from sdsl_jax.errors import SdslError
from sdsl_jax.models import ModelConfig, count, init_params
from sdsl_jax.records import ModelRecord
from sdsl_jax.training import train_ladder

TEXT = "the house of the people is the house that the people built, and the people keep it " * 40
DATA = DataConfig(
    source=("somewhere/a.txt", "b.txt"), tokenizer="bpe", vocab_size=280, sequence_length=24
)


def write(folder, tokenizer, seed=0, model_id="draft-x"):
    config = ModelConfig(
        vocab_size=tokenizer.vocab_size,
        width=8,
        layers=1,
        heads=2,
        kv_heads=1,
        head_dim=4,
        hidden=12,
        rope_theta=5e3,
    )
    params = init_params(config, jax.random.key(seed))
    record = ModelRecord(
        model_id,
        "draft",
        400,
        count(config, 0).total,
        1000,
        seed,
        2.5,
        12.2,
        storage.digest(params),
    )
    write_model_folder(folder, config, params, tokenizer, record, DATA)
    return config, params, record


@pytest.fixture(scope="module")
def bpe():
    return BPETokenizer.train(TEXT, 280)


@pytest.fixture(scope="module")
def written(tmp_path_factory, bpe):
    folder = tmp_path_factory.mktemp("rung") / "model-10"
    return folder, *write(folder, bpe)


@pytest.fixture
def copy(written, tmp_path):
    return shutil.copytree(written[0], tmp_path / "model-10")


def test_a_folder_holds_all_that_is_needed(written, bpe):
    folder, config, params, record = written
    loaded = load_model_folder(folder)
    assert loaded.config == config
    assert loaded.data == DATA
    # NaN is not equal to itself.
    assert repr(loaded.record) == repr(record)
    for mine, theirs in zip(jax.tree.leaves(params), jax.tree.leaves(loaded.params), strict=True):
        np.testing.assert_array_equal(mine, theirs)
    ids = loaded.tokenizer.encode("the people\0built it")
    np.testing.assert_array_equal(ids, bpe.encode("the people\0built it"))
    assert loaded.tokenizer.decode(ids) == bpe.decode(ids)
    assert not list(folder.rglob("*.partial"))


def test_bytes_need_no_file(tmp_path):
    write(tmp_path / "model-1", ByteTokenizer())
    assert not (tmp_path / "model-1" / "tokenizer.json").exists()
    assert load_model_folder(tmp_path / "model-1").tokenizer.kind == "bytes"


def test_what_a_path_may_be(written, copy, bpe):
    for path in (copy, copy / "params", copy.parent):
        assert load_model_folder(path).record.model_id == "draft-x"
    shutil.copytree(copy, copy.parent / "model-5")
    with pytest.raises(SdslError, match="holds 2 models; name one of them: model-5, model-10"):
        load_model_folder(copy.parent)
    with pytest.raises(SdslError, match="does not exist"):
        load_model_folder(copy / "nothing")
    with pytest.raises(SdslError, match="is a file"):
        load_model_folder(copy / "model.json")
    (copy.parent / "empty").mkdir()
    with pytest.raises(SdslError, match="holds no model"):
        load_model_folder(copy.parent / "empty")


def test_missing_parts_are_named(copy):
    for name, message in (
        ("tokenizer.json", "lacks tokenizer.json"),
        ("model.json", r"lacks model\.json"),
        ("record.json", r"lacks record\.json"),
    ):
        (copy / name).unlink()
        with pytest.raises(SdslError, match=message):
            load_model_folder(copy)
    shutil.rmtree(copy / "params")
    (copy / "model.json").write_text("{}")
    with pytest.raises(SdslError, match=r"lacks record\.json and params\."):
        load_model_folder(copy)


def damage_weights(copy, _):
    for file in (copy / "params").rglob("*"):
        if file.is_file() and file.stat().st_size > 1000:
            file.write_bytes(file.read_bytes()[:100])


def other_weights(copy, bpe):
    write(copy.parent / "other", bpe, seed=1)
    shutil.rmtree(copy / "params")
    shutil.copytree(copy.parent / "other" / "params", copy / "params")


def change(*path, to):
    def apply(copy, _):
        values = json.loads((copy / "model.json").read_text())
        inner = values
        for key in path[:-1]:
            inner = inner[key]
        inner[path[-1]] = to
        (copy / "model.json").write_text(json.dumps(values))

    return apply


def another_vocabulary(copy, _):
    BPETokenizer.train(TEXT[::-1], 280).save(copy / "tokenizer.json")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_weights, "params is damaged"),
        (other_weights, "params is damaged: its digest is"),
        (
            lambda copy, _: (copy / "model.json").write_text("{"),
            r"model\.json is damaged: it is not valid JSON",
        ),
        (lambda copy, _: (copy / "record.json").write_text('{"x": 1}'), r"record\.json is damaged"),
        (lambda copy, _: (copy / "tokenizer.json").write_text("{}"), r"tokenizer\.json is damaged"),
        (another_vocabulary, r"tokenizer\.json is not the one"),
        (change("version", to=7), r"format version 7; this version of sdsl_jax reads 1 to 6"),
        (change("version", to=3), r"model\.json is damaged: its head is None"),
        (change("format", to="x"), r"format 'x'"),
        (
            change("architecture", "width", to="wide"),
            r"model\.json is damaged: architecture\.width is 'wide'",
        ),
        (
            change("architecture", "width", to=16),
            r"model\.json describes \d+ parameters, and record\.json 2",
        ),
        (change("tokenizer", "kind", to="words"), r"of the kind 'words'"),
        (change("tokenizer", to="bytes"), r"its tokenizer has 256 entries, its model 280"),
    ],
)
def test_damage_is_named(copy, bpe, damage, message):
    damage(copy, bpe)
    with pytest.raises(SdslError, match=message):
        load_model_folder(copy)


def test_a_fingerprint_is_of_the_mapping(bpe, tmp_path):
    bpe.save(tmp_path / "t.json")
    compact = json.dumps(json.loads((tmp_path / "t.json").read_text()))
    (tmp_path / "t.json").write_text(compact)
    assert fingerprint(BPETokenizer.load(tmp_path / "t.json")) == fingerprint(bpe)
    assert fingerprint(BPETokenizer.train(TEXT[::-1], 280)) != fingerprint(bpe)
    assert fingerprint(ByteTokenizer()) == "bytes"


@pytest.mark.slow
def test_a_ladder_describes_its_models(tmp_path):
    ladder = {
        "draft_params": [600],
        "draft_tokens": [2_048],
        "target_params": [600],
        "target_tokens": [2_048],
    }
    config = tiny(ladder=ladder, training={"warmup_tokens": 256, "evaluation_windows": 4})
    dataset = load_dataset(config.data)
    records = train_ladder(config, dataset, tmp_path)
    for record in records:
        loaded = load_model_folder((tmp_path / record.checkpoint).parent)
        assert repr(loaded.record) == repr(record)
        assert loaded.data == config.data
        assert dataclasses.asdict(loaded.config)["vocab_size"] == 256


def test_a_loaded_model_shows_itself_in_a_line_and_in_a_notebook(written):
    folder, config, params, _ = written
    loaded = load_model(str(folder))
    assert loaded.model.config == config
    assert repr(loaded).startswith("LoadedModel('draft-x', parameters: ")
    assert "array" not in repr(loaded)
    assert len(repr(loaded)) < 400
    assert loaded._repr_html_().startswith("<table><caption>draft-x</caption>")
    for model in (loaded.model.params, loaded.params):
        assert jax.tree.structure(model) == jax.tree.structure(params)


def test_a_name_on_a_hub_is_refused_with_the_command_that_downloads_it():
    with pytest.raises(SdslError, match=r"hf download Qwen/Qwen2.5-14B"):
        load_model("Qwen/Qwen2.5-14B")
