import json
import sys
import types

import pytest

from sdsl_jax.config import DataConfig
from sdsl_jax.data import load_dataset, source_digests
from sdsl_jax.errors import SdslError

TEXTS = [f"row {i} of a data set – with words" for i in range(100)]


def config(name, tmp_path, **changes):
    return DataConfig(
        source=f"hf:{name}", sequence_length=16, shards=str(tmp_path / "shards"), **changes
    )


@pytest.fixture
def fake(monkeypatch):
    """A module `datasets` that notes how it was called and streams rows, or raises."""
    module = types.ModuleType("datasets")
    module.calls, module.rows = [], [{"text": text, "id": i} for i, text in enumerate(TEXTS)]

    def load(**arguments):
        module.calls.append(arguments)
        for row in module.rows:
            if isinstance(row, Exception):
                raise row
            yield row

    module.load_dataset = load
    monkeypatch.setitem(sys.modules, "datasets", module)
    return module


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("owner/name", ("owner/name", None, None)),
        ("owner/name:20231101.en", ("owner/name", "20231101.en", None)),
        ("owner/name@4f0c", ("owner/name", None, "4f0c")),
        ("owner/name:en@4f0c", ("owner/name", "en", "4f0c")),
    ],
)
def test_rows_are_streamed_once_and_kept(fake, tmp_path, name, parts):
    data = load_dataset(config(name, tmp_path))
    call = dict(zip(("path", "name", "revision"), parts), split="train", streaming=True)
    assert fake.calls == [call]
    text = "".join(
        data.tokenizer.decode(data.splits[s][:]) for s in ("train", "validation", "test")
    )
    assert text == "\0".join(TEXTS)
    sys.modules["datasets"] = None  # nothing is asked of the library, or of the network, any more
    assert load_dataset(config(name, tmp_path)).digest == data.digest
    assert source_digests(config(name, tmp_path)) == [f"hf:{name}"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            ConnectionError("Couldn't reach 'owner/name' on the Hub.\nmore"),
            r"read from Hugging Face \(Couldn't reach .* Hub\)",
        ),
        (KeyError(), r"cannot be read from Hugging Face \(KeyError\)"),
        (
            {"body": "x"},
            r"row 101 of the data set owner/name has no text in the column 'text' \(text_column\)",
        ),
        ({"text": None}, "row 101 .* has no text"),
        ({"text": "\ud800"}, "row 101 of the data set owner/name holds half a surrogate pair"),
    ],
)
def test_what_cannot_be_had_is_named(fake, tmp_path, row, message):
    fake.rows.append(row)
    with pytest.raises(SdslError, match=message):
        load_dataset(config("owner/name", tmp_path))
    assert not list((tmp_path / "shards").glob("*/manifest.json"))


def test_a_name_that_is_none(fake, tmp_path):
    for name in ("", "a b", ":en"):
        with pytest.raises(SdslError, match="is no name; it must read owner/name"):
            load_dataset(config(name, tmp_path))


def test_without_the_library(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(
        SdslError,
        match=r"hf:owner/name needs the library datasets, .*install 'sdsl_jax\[datasets\]'",
    ):
        load_dataset(config("owner/name", tmp_path))


def test_the_library_itself_on_local_files(monkeypatch, tmp_path):
    pytest.importorskip("datasets")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    folder = tmp_path / "set"
    folder.mkdir()
    (folder / "train.jsonl").write_text(
        "".join(json.dumps({"body": text}) + "\n" for text in TEXTS)
    )
    data = load_dataset(config(folder, tmp_path, text_column="body"))
    assert data.tokenizer.decode(data.splits["train"][:]).startswith("\0".join(TEXTS[:50]))
    with pytest.raises(SdslError, match=r"row 1 of the data set .* no text in the column 'title'"):
        load_dataset(config(folder, tmp_path, text_column="title"))
    with pytest.raises(SdslError, match="gone cannot be read from Hugging Face"):
        load_dataset(config(tmp_path / "gone", tmp_path))
