"""Text held out by article: whole articles, by their names alone, each text once."""

import dataclasses
import json
import random
from itertools import chain

import numpy as np
import pytest

from sdsl_jax.config import DataConfig, DomainConfig
from sdsl_jax.data import load_dataset
from sdsl_jax.data.articles import article_split
from sdsl_jax.data.corpus import held_out_name, read_pieces, write_text
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
    with pytest.raises(SdslError, match=r"not trained on text that data\.article cuts"):
        load_prompts(f"heldout:{config.source}", ByteTokenizer(), count=5, max_tokens=60, data=None)


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
