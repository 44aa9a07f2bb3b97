"""The tokenizer in a GGUF file, as one of the library `tokenizers` that gives the ids of llama.cpp."""

from __future__ import annotations

from pathlib import Path
from reprlib import repr as shown
from typing import Any, NamedTuple

from tokenizers import AddedToken, Regex, decoders, models, pre_tokenizers, processors
from tokenizers import Tokenizer as HuggingFaceTokenizer

from sdsl_jax.errors import require
from sdsl_jax.user_files import reading

_KEY = "tokenizer.ggml."
_CONTROL, _USER_DEFINED = 3, 4
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
_LLAMA3 = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


class _Rule(NamedTuple):
    """How a pre-tokenizer cuts texts before merges.

    Attributes:
      patterns: Applied one after another; matches stand alone, and so does the text between them.
      whole_words: Whether a piece that is a token becomes that token whatever the merges say.
      begin: Whether a begin-of-text token is added unless the file says.
    """

    patterns: tuple[str, ...]
    whole_words: bool = False
    begin: bool = False


_DEFAULT = _Rule((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"))
# By the names that llama.cpp knows, those of one rule together.
_RULES: dict[str, _Rule] = {
    name: rule
    for names, rule in {
        "default": _DEFAULT,
        "gpt-2 phi-2 mpt olmo jais": _Rule((_GPT2,)),
        "smollm starcoder refact command-r codeshell exaone minerva-7b": _Rule((r"\p{N}", _GPT2)),
        "llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral lfm2": _Rule(
            (_LLAMA3,), whole_words=True, begin=True
        ),
        "dbrx smaug-bpe": _Rule((_LLAMA3,)),
        "qwen2 deepseek-r1-qwen stablelm2 hunyuan megrez": _Rule((_LLAMA3.replace("{1,3}", ""),)),
    }.items()
    for name in names.split()
}


class TokenizerOfFile(NamedTuple):
    """The tokenizer in a GGUF file.

    Attributes:
      tokenizer: The tokenizer.
      end_ids: Ids that end a text.
      chat_template: Chat template; None if there is none.
      warnings: What a reader should know, one sentence each.
    """

    tokenizer: HuggingFaceTokenizer
    end_ids: tuple[int, ...]
    chat_template: str | None
    warnings: tuple[str, ...]


def read_gguf_tokenizer(path: Path, settings: dict[str, Any]) -> TokenizerOfFile:
    """The tokenizer that the settings of a GGUF file describe.

    Args:
      path: Path to the file, for messages.
      settings: Settings in its header.

    Raises:
      SdslError: The tokenizer is of another kind, incomplete, or contradicts itself.
    """
    kind, pre = settings.get(_KEY + "model"), settings.get(_KEY + "pre")
    unnamed = pre in (None, "")
    require(
        kind == "gpt2" and (unnamed or (isinstance(pre, str) and pre in _RULES)),
        f"the tokenizer of {path} is of the kind {shown(kind)} with the pre-tokenizer {shown(pre)}; only 'gpt2' with one of "
        f"{', '.join(_RULES)} is read.",
    )
    rule = _DEFAULT if unnamed else _RULES[str(pre)]
    tokens = _strings(path, settings, "tokens")
    # As in llama.cpp; an empty token stands for nothing.
    tokens = [token or f"[EMPTY_{number}]" for number, token in enumerate(tokens)]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    require(
        len(vocabulary) == len(tokens) > 0,
        f"{_KEY}tokens of {path} has no entries or one of them twice.",
    )
    merges = []
    for merge in _strings(path, settings, "merges"):
        first, gap, second = merge[:1], *merge[1:].partition(" ")[1:]
        first += merge[1 : len(merge) - len(gap) - len(second)]
        require(
            gap and first in vocabulary and second in vocabulary and first + second in vocabulary,
            f"the merge {shown(merge)} in {_KEY}merges of {path} joins what is not in its tokens.",
        )
        merges.append((first, second))
    tokenizer = HuggingFaceTokenizer(
        models.BPE(vocab=vocabulary, merges=merges, ignore_merges=rule.whole_words)
    )
    cuts: list[Any] = [
        pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in rule.patterns
    ]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [*cuts, pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    kinds = settings.get(_KEY + "token_type")
    require(
        kinds is None or (isinstance(kinds, list) and len(kinds) >= len(tokens)),
        f"{_KEY}token_type of {path} must have one entry for each of the {len(tokens):,} tokens.",
    )
    kinds = kinds or []
    with reading(path, "GGUF file"):
        special = [
            AddedToken(t, special=True, normalized=False)
            for t, k in zip(tokens, kinds)
            if k == _CONTROL
        ]
        tokenizer.add_special_tokens(special)
        tokenizer.add_tokens(
            [AddedToken(t, normalized=False) for t, k in zip(tokens, kinds) if k == _USER_DEFINED]
        )
    _add_around(tokenizer, path, settings, rule, len(tokens))
    end, template = (
        _token_id(path, settings, "eos", len(tokens)),
        settings.get("tokenizer.chat_template"),
    )
    said = (
        f"{path} does not name its pre-tokenizer ({_KEY}pre): texts are cut by the default rule of llama.cpp, which may not be "
        "how the model was trained.",
    )
    return TokenizerOfFile(
        tokenizer,
        () if end is None else (end,),
        template if isinstance(template, str) else None,
        said if unnamed else (),
    )


def _add_around(
    made: HuggingFaceTokenizer, path: Path, settings: dict[str, Any], rule: _Rule, size: int
) -> None:
    """Sets the tokens that stand before and behind every text."""
    parts, labels = ["$A"], []
    for name, default in (("bos", rule.begin), ("eos", False)):
        added = settings.get(f"{_KEY}add_{name}_token")
        require(
            added in (None, True, False),
            f"{_KEY}add_{name}_token of {path} is {shown(added)}; it must be true or false.",
        )
        if not (default if added is None else added):
            continue
        number = _token_id(path, settings, name, size)
        why = "its pre-tokenizer's default" if added is None else f"{_KEY}add_{name}_token"
        require(
            number is not None,
            f"{_KEY}{name}_token_id of {path} is missing, and by {why} the token is added to texts.",
        )
        labels.append((name, number))
        parts = [name, *parts] if name == "bos" else [*parts, name]
    if labels:
        made.post_processor = processors.TemplateProcessing(
            single=" ".join(parts), special_tokens=labels
        )


def _strings(path: Path, settings: dict[str, Any], name: str) -> list[str]:
    """A required list of strings."""
    values = settings.get(_KEY + name)
    require(values is not None, f"the file {path} has no {_KEY}{name}, which its tokenizer needs.")
    # An empty list has entries of no type.
    require(
        isinstance(values, list) and (not values or isinstance(values[0], str)),
        f"{_KEY}{name} of {path} must be a list of strings.",
    )
    return values or []


def _token_id(path: Path, settings: dict[str, Any], name: str, size: int) -> int | None:
    """The id of a token that a setting names; None if the setting is missing."""
    number = settings.get(f"{_KEY}{name}_token_id")
    require(
        number is None or (isinstance(number, int) and 0 <= number < size),
        f"{_KEY}{name}_token_id of {path} is {shown(number)}; the file has {size:,} tokens.",
    )
    return number
