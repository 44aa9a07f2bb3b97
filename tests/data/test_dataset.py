import csv
from pathlib import Path

import numpy as np
import pytest

from sdsl_jax.config import DataConfig
from sdsl_jax.data import load_dataset
from sdsl_jax.errors import SdslError


@pytest.fixture(scope="module")
def sotu():
    return load_dataset(DataConfig())


def test_a_batch_is_a_function_of_seed_and_step(sotu):
    one, other = sotu.batches(7, 4), sotu.batches(7, 4)
    later = one[50]
    for step in (0, 3, 50):
        np.testing.assert_array_equal(one[step], other[step])
    np.testing.assert_array_equal(later, one[50])
    assert later.shape == (4, 129)
    assert not np.array_equal(sotu.batches(8, 4)[3], one[3])


def test_an_epoch_sees_every_window_once(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text("".join(chr(33 + i % 90) for i in range(2000)))
    data = load_dataset(
        DataConfig(
            source=(str(path),), sequence_length=8, validation_fraction=0.1, test_fraction=0.1
        )
    )
    windows = data.text("train").window_count
    batches = data.batches(0, 1)
    first = [batches[step][0].tobytes() for step in range(windows)]
    second = [batches[windows + step][0].tobytes() for step in range(windows)]
    expected = sorted(w.tobytes() for w in data.text("train").windows(windows))
    assert sorted(first) == sorted(second) == expected
    assert first != second


def test_the_embedded_corpus_is_the_one_that_the_shipped_ladder_was_trained_on(sotu):
    ladder = Path(__file__).parents[2] / "checkpoints" / "ladder" / "records" / "models.csv"
    with open(ladder, newline="") as file:
        assert {row["data_digest"] for row in csv.DictReader(file)} == {sotu.digest}


def test_windows_are_spread_over_the_split(sotu):
    windows = sotu.text("test").windows(10)
    assert windows.shape == (10, 129)
    np.testing.assert_array_equal(windows[0], sotu.splits["test"][:129])
    assert len(sotu.text("test").windows(10**9)) == sotu.text("test").window_count


def test_bytes_round_trip(sotu):
    text = "naïve – “quoted”\0next"
    assert sotu.tokenizer.decode(sotu.tokenizer.encode(text)) == text


def test_bpe_round_trips_and_compresses(sotu, tmp_path):
    path = tmp_path / "speech.txt"
    path.write_text(sotu.tokenizer.decode(sotu.splits["test"][:60_000]).replace("\0", " "))
    config = DataConfig(source=str(path), tokenizer="bpe", vocab_size=400, sequence_length=32)
    data, again = load_dataset(config), load_dataset(config)
    assert data.digest == again.digest
    assert data.bytes_per_token["train"] > 1.5
    assert data.tokenizer.vocab_size == 400
    text = "We the People – naïve"
    assert data.tokenizer.decode(data.tokenizer.encode(text)) == text
    assert (data.tokenizer.encode("a\0b") == 0).sum() == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "is empty"),
        ("blank.txt", b" \n\n", "is empty"),
        ("bad.txt", b"abc\xff\xfe", r"not valid UTF-8 \(byte 3 is 0xff"),
        ("tiny.txt", b"a", r"the (validation|test|train) split of the corpus holds [01] tokens"),
        ("short.txt", b"0123456789" * 10, "must hold more than data.sequence_length"),
        ("bad.jsonl", b'{"text": "a"}\n{oops', "line 2 .* is not valid JSON"),
        ("column.jsonl", b'{"body": "a"}', "no text in the column 'text'"),
        ("bad.parquet", b"PAR1 not really", "not a valid Parquet file"),
        ("book.pdf", b"%PDF", "unknown kind; allowed are .txt, .jsonl, .parquet"),
    ],
)
def test_unusable_corpora_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SdslError, match=message):
        load_dataset(DataConfig(source=(str(tmp_path / name),)))


def test_a_missing_corpus_is_named(tmp_path):
    with pytest.raises(SdslError, match=r"gone\.txt cannot be read \(No such file"):
        load_dataset(DataConfig(source=str(tmp_path / "gone.txt")))
