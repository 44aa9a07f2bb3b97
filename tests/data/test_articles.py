"""Text held out by article: whole articles, by their names alone, each text once."""

import dataclasses
import json
import random
from itertools import chain

import numpy as np
import pytest

from sdsl_jax.config import ConditionsConfig, DataConfig, DomainConfig, StudyConfig
from sdsl_jax.config.sections import LadderConfig
from sdsl_jax.data import domains, load_dataset
from sdsl_jax.data.articles import article_name, article_split
from sdsl_jax.data.corpus import held_out_name, held_out_rows, read_pieces, write_text
from sdsl_jax.data.domains import load_domain
from sdsl_jax.data.prompts import load_prompts
from sdsl_jax.data.tokenizer import ByteTokenizer
from sdsl_jax.errors import SdslError

# Articles of one to four passages, some without a title and some rows twice, in random order.
ROWS = [f"Title {i} -- passage {j} of some words" for i in range(60) for j in range(1 + i % 4)]
ROWS += [f"A text {i} without a title." for i in range(60)] + ROWS[:40]
random.Random(0).shuffle(ROWS)


@pytest.fixture
def config(tmp_path):
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps({"text": row}) for row in ROWS))
    return DataConfig(
        source=str(tmp_path / "a.jsonl"),
        article="^(.+?) -- ",
        validation_fraction=0.2,
        test_fraction=0.3,
        sequence_length=16,
        shards=str(tmp_path / "shards"),
    )


def documents_of(config, folder):
    spans = write_text(config, folder / "text")
    return {
        name: "".join(read_pieces(folder / "text", span)).split("\0")
        for name, span in spans.items()
    }


def test_an_article_lies_in_one_split_and_a_text_counts_once(config, tmp_path):
    splits = documents_of(config, tmp_path)
    assert sorted(chain(*splits.values())) == sorted({*ROWS})
    for name, rows in splits.items():
        assert rows == [row for row in dict.fromkeys(ROWS) if article_split(config, row) == name]
    titles = {n: {row.partition(" -- ")[0] for row in rows} for n, rows in splits.items()}
    assert sum(map(len, titles.values())) == len(set.union(*titles.values())) == 120
    # Shares of 120 articles: three standard deviations of a binomial are 0.13 and 0.11.
    assert abs(len(titles["test"]) / 120 - 0.3) < 0.13
    assert abs(len(titles["validation"]) / 120 - 0.2) < 0.11
    by_position = documents_of(dataclasses.replace(config, article=""), tmp_path)
    assert sorted(chain(*by_position.values())) != sorted({*ROWS})


def test_a_split_depends_on_the_name_alone(config):
    """Not on the text, on other articles, on the order, or on where the validation split ends."""
    other = dataclasses.replace(config, validation_fraction=0.05)
    for i in range(60):
        names = {article_split(config, f"Title {i} -- {text}") for text in ("a", "b" * 2000)}
        assert len(names) == 1
        held_out = "test" in names
        assert held_out == (article_split(other, f"Title {i} -- c") == "test")
    # Without a name, how a text begins stands for it.
    assert article_split(config, "b" * 1000) == article_split(config, "b" * 9000)
    # Of several groups the first that matches.
    either = dataclasses.replace(config, article="^(.+?) -- |^([^.]+)")
    for name in ("one", "two"):
        assert len({article_split(either, f"{name}. {i}") for i in range(20)}) == 1


def test_more_files_move_no_document(config, tmp_path):
    (tmp_path / "b.jsonl").write_text(
        "\n".join(json.dumps({"text": f"Title {i} -- more"}) for i in range(80))
    )
    both = dataclasses.replace(config, source=(config.source, str(tmp_path / "b.jsonl")))
    for name, rows in documents_of(config, tmp_path).items():
        assert documents_of(both, tmp_path)[name][: len(rows)] == rows


def test_domains_and_prompts_of_held_out_articles(config, tmp_path):
    dataset = load_dataset(config)
    domain = DomainConfig("one kind", config.source, held_out=True)
    text = load_domain(domain, dataset, 4, data=config)
    np.testing.assert_array_equal(text.ids, dataset.splits["test"][:])
    held_out = bytes(dataset.splits["test"][:].tolist()).decode().split("\0")
    prompts = load_prompts(
        f"heldout:{config.source}", ByteTokenizer(), count=5, max_tokens=60, data=config
    )
    assert prompts.available == len(held_out)
    assert prompts.domain == "held-out articles of a.jsonl"
    texts = [bytes(row[:n].tolist()).decode() for row, n in zip(prompts.tokens, prompts.lengths)]
    assert len(texts) == 5
    assert {*texts} <= {*held_out}
    assert held_out_name(config) == f"30% of the articles of {config.source}"
    for field, data, message in (
        ("", None, r"not trained on text that data\.article cuts"),
        ("text", config, r"read by data\.text_column; leave out the field 'text'"),
    ):
        with pytest.raises(SdslError, match=message):
            load_prompts(
                f"heldout:{config.source}",
                ByteTokenizer(),
                count=5,
                max_tokens=60,
                data=data,
                field=field,
            )


def test_rows_are_judged_as_the_corpus_reads_them(config, tmp_path):
    """By its own columns, and without the name of an article only where they are its documents."""
    held, trained = (
        next(row for row in ROWS if row[0] == "T" and (article_split(config, row) == "test") == out)
        for out in (True, False)
    )
    nameless = [f"A text {i} without a title." for i in range(60)]
    other = tmp_path / "other.jsonl"
    rows = [{"prompt": held, "text": trained}, *({"text": row} for row in [*nameless, held])]
    other.write_text("\n".join(map(json.dumps, rows)))
    assert [*held_out_rows([other], config)] == [held]
    own = [*held_out_rows([tmp_path / "a.jsonl"], config)]
    assert {*own} & {*nameless}
    (tmp_path / "plain.txt").write_text(held)
    (tmp_path / "trained.jsonl").write_text(json.dumps({"text": trained}))
    for name, message in (
        ("plain.txt", "has no rows"),
        ("trained.jsonl", "no row of .* is known to be"),
    ):
        with pytest.raises(SdslError, match=message):
            load_prompts(
                f"heldout:{tmp_path / name}", ByteTokenizer(), count=1, max_tokens=9, data=config
            )


def test_a_domain_reads_held_out_rows_by_the_corpus_own_columns(config, tmp_path, monkeypatch):
    """And samples what is held out: files may hold far more, in other rows and other columns."""
    path = tmp_path / "wide.jsonl"
    rows = [{"text": row, "more": "x" * 2000, "body": "Title"} for row in ROWS]
    path.write_text("\n".join(map(json.dumps, rows)))
    domain, dataset = DomainConfig("one kind", str(path), held_out=True), load_dataset(config)
    held = [*held_out_rows([path], config)]
    size = sum(map(len, held))
    for room, every in ((size, 1), (size // 2, 3), (size // 2 + 1, 2)):
        monkeypatch.setattr(domains, "MOST_BYTES", room)
        text = load_domain(domain, dataset, 4, data=config)
        assert bytes(text.ids.tolist()).decode().split("\0") == held[::every]
    wrong = dataclasses.replace(domain, text_column="body")
    with pytest.raises(SdslError, match=r"read by data\.text_column \('text'\), so leave it out"):
        StudyConfig(
            "s",
            LadderConfig((1,), (2,), (3,), (4,)),
            data=config,
            conditions=ConditionsConfig((), (wrong,)),
        )
    with pytest.raises(SdslError, match="which the validation split is not"):
        DomainConfig("same text", "validation", held_out=True)


def test_an_empty_group_names_no_article(config):
    """Else all documents that begin with the separator would be one article."""
    either = dataclasses.replace(config, article="^(.*?) -- ")
    texts = [f"{blank} -- text {i}" for i in range(60) for blank in ("", "  ")]
    assert {article_split(either, text) for text in texts} == {"train", "validation", "test"}
    assert article_name(either, " -- text") is None
    assert article_name(dataclasses.replace(config, article="^(x?)(.)"), "ab") == "a"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"article": "^.+ -- "}, "a group must hold the name of the article"),
        ({"article": "^(.+"}, "which is no regular expression"),
        ({"article": "^(.+)", "source": "sotu"}, "the embedded corpus is cut by year"),
    ],
)
def test_what_names_no_article_is_refused(changes, message):
    with pytest.raises(SdslError, match=message):
        DataConfig(**{"source": "a.jsonl"} | changes)
