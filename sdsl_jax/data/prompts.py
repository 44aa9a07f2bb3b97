"""Prompts to measure a pair on: from a file, or from held-out text of a corpus.

A `.txt` file holds one prompt a line; blank lines are skipped. A `.jsonl` file holds one object a
line. Its prompt is the chosen field, or else the first of these: `prompt`, `text`, `ctx`, `ctx_a`
with `ctx_b`, `question`. Rows with ctx are rows of HellaSwag: "ctx_a ctx_b", after "activity_label:
" if the row has one. Either file may be compressed.
"""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Int

from sdsl_jax.config import DataConfig
from sdsl_jax.data.corpus import EMBEDDED, held_out_name, held_out_rows
from sdsl_jax.data.dataset import load_dataset, spread
from sdsl_jax.data.documents import (
    BYTE_ORDER_MARK,
    SEPARATOR,
    Separators,
    few_names,
    parse_row,
    require_characters,
)
from sdsl_jax.data.folders import kind_of
from sdsl_jax.data.published import PublishedTokenizer
from sdsl_jax.data.shards import TokenArray
from sdsl_jax.data.study_tokenizer import adopted_fingerprint
from sdsl_jax.data.tokenizer import PUBLISHED, Tokenizer, fingerprint
from sdsl_jax.errors import SdslError, require
from sdsl_jax.package_files import user_path
from sdsl_jax.user_files import read_text

# What `--prompts` may name instead of a file.
HELD_OUT = "heldout"
_FIELDS = ("prompt", "text", "ctx", "ctx_a", "question")


class Prompts(NamedTuple):
    """Prompts of different lengths.

    Attributes:
      tokens: Ids, padded on the right with 0.
      lengths: Tokens of each prompt, at least 1.
      domain: What the prompts are, in a few words.
      available: Number of prompts to choose from.
      cut: Number of prompts that were longer than allowed.
      lead: Tokens at the beginning of each prompt that are no text, such as a begin-of-text token.
    """

    tokens: Int[np.ndarray, "rows width"]
    lengths: Int[np.ndarray, " rows"]
    domain: str
    available: int
    cut: int
    lead: int = 0


def bytes_after_first(prompts: Prompts, tokenizer: Tokenizer) -> Int[np.ndarray, " rows"]:
    """Bytes of each prompt's text after its first token of text: the part that any model can be
    asked to predict.
    """
    lead = prompts.lead
    if tokenizer.kind == "bytes":
        return prompts.lengths - 1 - lead

    def size(ids: np.ndarray) -> int:
        return len(tokenizer.decode(ids[lead:]).encode())

    return np.asarray(
        [size(ids[:n]) - size(ids[: lead + 1]) for ids, n in zip(prompts.tokens, prompts.lengths)]
    )


def load_prompts(
    source: str,
    tokenizer: Tokenizer,
    *,
    count: int,
    max_tokens: int,
    data: DataConfig | None,
    field: str = "",
) -> Prompts:
    """Reads prompts and chooses `count` of them, spread evenly over the source, beginning with the
    first.

    A prompt of a file that is too long keeps its last tokens, on which a continuation depends.
    Held-out text is cut into windows of `data.sequence_length` tokens, as in training, and a prompt
    is the beginning of a window.

    Args:
      source: A .txt or .jsonl file, also as "package:NAME/PATH"; "heldout" for the test split of `data`, or "sotu" for that of
        the embedded corpus; "heldout:FILE" for the rows of a .jsonl or .parquet file whose articles
        `data` holds out, read by `data.text_column`, each text once.
      tokenizer: Tokenizer of the models that the prompts are for.
      count: Number of prompts; all of them if there are fewer.
      max_tokens: Longest prompt, in tokens.
      data: Text that the models were trained on; None if it is unknown, so that nothing can be held
        out.
      field: Field of the rows of a .jsonl file; found automatically if empty.

    Raises:
      SdslError: The source cannot be read, holds no prompt, or holds something that is not a
        prompt.
    """
    require(count >= 1, f"the number of prompts is {count}; it must be at least 1.")
    require(
        max_tokens >= 1, f"the length of a prompt is {max_tokens} tokens; it must be at least 1."
    )
    if source in (HELD_OUT, EMBEDDED):
        require(
            not field,
            f"the prompts are {source!r}, which has no field {field!r}; only rows of a .jsonl file have.",
        )
        require(
            data is not None or source == EMBEDDED,
            f"the prompts are {source!r}, but the text that the model was trained on is unknown; give a .txt or .jsonl "
            f"file, or {EMBEDDED!r}.",
        )
        return _held_out(source, tokenizer, count, max_tokens, data or DataConfig())
    file = source.removeprefix(f"{HELD_OUT}:")
    path = user_path(file)
    if file != source:
        require(
            not field,
            f"the prompts are held-out articles of {path}, which are read by data.text_column; leave out the field {field!r}.",
        )
        texts, domain = _held_out_texts(path, data), f"held-out articles of {path.name}"
    else:
        texts, domain = read_prompts(path, field), path.name
    return encode_prompts(
        [texts[i] for i in spread(len(texts), count)], tokenizer, max_tokens, domain, len(texts)
    )


def _held_out_texts(path: Path, data: DataConfig | None) -> list[str]:
    """The rows whose articles are held out, each text once."""
    if data is None or not data.article:
        raise SdslError(
            f"the prompts are held-out articles of {path}, but the model was not trained on text that data.article cuts; name "
            "the file alone, or 'heldout'."
        )
    texts = [text for text in held_out_rows([path], data) if text.strip()]
    require(texts, f"no row of {path} is known to be of a held-out article.")
    return texts


def encode_prompts(
    texts: list[str], tokenizer: Tokenizer, longest: int, domain: str, available: int | None = None
) -> Prompts:
    """Texts as prompts of at most `longest` tokens.

    Args:
      texts: At least one text.
      tokenizer: Tokenizer of the models that the prompts are for.
      longest: Longest prompt, in tokens.
      domain: What the texts are, in a few words.
      available: Number of texts to choose from; their number if None.

    Raises:
      SdslError: What the tokenizer puts around every text leaves no room for it.
    """
    encoded = [tokenizer.encode_prompt(text, longest) for text in texts]
    padded = pad_prompts(
        [each.ids for each in encoded],
        domain,
        available or len(texts),
        sum(each.cut for each in encoded),
    )
    return padded._replace(lead=encoded[0].lead)


def _held_out(
    source: str, tokenizer: Tokenizer, count: int, max_tokens: int, data: DataConfig
) -> Prompts:
    if source == EMBEDDED and data.source != EMBEDDED:
        data = DataConfig(sequence_length=data.sequence_length, shards=data.shards)
    # Windows of any length can be cut from the corpus as it lies on disk; what is too short is said
    # below.
    ids = _test_ids(tokenizer, dataclasses.replace(data, sequence_length=8))
    windows = (
        len(ids) - 1
    ) // data.sequence_length  # those of a study, so that its prompts are these
    require(
        windows > 0,
        f"the held-out text has {len(ids)} tokens; it must have more than one sequence of {data.sequence_length}.",
    )
    lead = (
        tokenizer.around()[0]
        if isinstance(tokenizer, PublishedTokenizer)
        else np.zeros(0, np.int32)
    )
    width = min(max_tokens, data.sequence_length) - len(lead)
    require(width >= 1, f"prompts may have {max_tokens} tokens; special tokens take all of them.")
    starts = [i * data.sequence_length for i in spread(windows, count)]
    rows = [np.concatenate([lead, ids[start : start + width]]) for start in starts]
    return pad_prompts(rows, held_out_name(data), windows, 0)._replace(lead=len(lead))


def _test_ids(tokenizer: Tokenizer, data: DataConfig) -> TokenArray | np.ndarray:
    """The test split in the ids of any tokenizer: as it is on disk if the data has that tokenizer,
    else encoded anew.
    """
    # What there is to say of the corpus was said when a model was trained on it.
    load = functools.partial(load_dataset, note=lambda text: None)
    if data.adopts_tokenizer:
        if _is_adopted(tokenizer, data):
            return load(data).splits["test"]
    elif tokenizer.kind == data.tokenizer:
        dataset = load(data)
        if fingerprint(tokenizer) == fingerprint(dataset.tokenizer):
            return dataset.splits["test"]
    raw = load(dataclasses.replace(data, tokenizer="bytes", vocab_size=256)).splits["test"]
    text = raw[:].astype(np.uint8).tobytes().decode()
    if not isinstance(tokenizer, PublishedTokenizer):
        return tokenizer.encode(text)
    ends = np.asarray(tokenizer.end_ids[:1], np.int32)
    parts = (tokenizer.encode_plain(part, literal=True) for part in text.split(SEPARATOR))
    return np.concatenate([ids for part in parts for ids in (part, ends)])


def _is_adopted(tokenizer: Tokenizer, data: DataConfig) -> bool:
    """Whether a tokenizer is the published one of the data, as far as that is at hand."""
    if tokenizer.kind != PUBLISHED:
        return False
    try:
        return fingerprint(tokenizer) == adopted_fingerprint(data)[0]
    except SdslError:  # a draft keeps its tokenizer where the published model is missing
        return False


def pad_prompts(prompts: list[np.ndarray], domain: str, available: int, cut: int) -> Prompts:
    """Ids of prompts, padded to one width; the other arguments as in `Prompts`."""
    lengths = np.array([len(p) for p in prompts], np.int32)
    tokens = np.zeros((len(prompts), lengths.max()), np.int32)
    for row, ids in zip(tokens, prompts):
        row[: len(ids)] = ids
    return Prompts(tokens, lengths, domain, available, cut)


def read_prompts(path: Path, field: str = "") -> list[str]:
    """The texts of a .txt or .jsonl file, as the module describes them.

    Raises:
      SdslError: The file is missing, damaged, of another kind or without prompts; a row has no
        prompt; or one holds NUL.
    """
    kind = kind_of(path)
    require(
        kind in (".txt", ".jsonl"),
        f"the prompts {str(path)!r} are of an unknown kind; they must be a .txt or .jsonl file, or {HELD_OUT!r} or {EMBEDDED!r} "
        "(from Python also a list of strings).",
    )
    require(
        not field or kind == ".jsonl",
        f"the prompt file {path} has no field {field!r}; only .jsonl files have.",
    )
    lines = [
        line.removeprefix(BYTE_ORDER_MARK).strip()
        for line in read_text(path, "prompt file").split("\n")
    ]
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line]
    require(numbered, f"the prompt file {path} is empty; it must hold at least one prompt.")
    separators, texts = Separators(f"the prompt file {path}"), list[str]()
    for number, line in numbered:
        where = f"line {number}"
        text = (
            line if kind == ".txt" else _row_text(line, field, f"{where} of the prompt file {path}")
        )
        texts += separators.pass_on([text], where)
    separators.refuse()
    return texts


def _row_text(line: str, field: str, where: str) -> str:
    row = parse_row(line, where)
    require(
        isinstance(row, dict),
        f"{where} is not a JSON object, one of which must stand in each line.",
    )
    fields = [field] if field else [name for name in _FIELDS if name in row][:1]
    expected = f"the field {field!r}" if field else f"any of the fields {', '.join(_FIELDS)}"
    require(
        fields and fields[0] in row,
        f"{where} does not have {expected}; it has {few_names(row)} (choose one with --prompt-field).",
    )
    text = row[fields[0]] if field or fields[0] not in ("ctx", "ctx_a") else _hellaswag(row)
    require(
        isinstance(text, str) and text.strip(),
        f"{where} has no text in the field {fields[0]!r}.",
    )
    require_characters(text, where)
    return text


def _hellaswag(row: dict[str, Any]) -> Any:
    """The context of a row of HellaSwag as one text; None if a part of it is no text."""
    parts = [row["ctx"]] if "ctx" in row else [row["ctx_a"], row.get("ctx_b") or ""]
    label = row.get("activity_label") or ""
    if not all(isinstance(part, str) for part in (*parts, label)):
        return None
    context = " ".join(filter(None, parts))
    return f"{label}: {context}" if label and context else context
