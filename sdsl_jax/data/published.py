"""The tokenizer of a published checkpoint. Special tokens and chat template are explicit settings."""

from __future__ import annotations

import reprlib
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer as HuggingFaceTokenizer

from sdsl_jax.data.chat_template import ChatTemplate
from sdsl_jax.data.tokenizer import PUBLISHED, EncodedPrompt, LibraryTokenizer, read_tokenizer
from sdsl_jax.errors import SdslError, require
from sdsl_jax.user_files import read_json_object, read_text

TOKENIZER, SETTINGS, TEMPLATE = "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"
ADDED = "added_tokens.json"
# Tokens that a warning names.
_NAMED = 4
# Of `--chat-template`: prompts as they are, or in the template that came with the checkpoint.
_LONGEST_TEMPLATE = 2**20
NO_TEMPLATE, OWN_TEMPLATE = "none", "own"


class PublishedTokenizer(LibraryTokenizer):
    """The tokenizer.json of a checkpoint.

    Attributes:
      kind: "published".
      vocab_size: One more than its largest id; the model's table may have more rows.
      special_tokens: Whether texts get the special tokens that the file adds around them, such as a
        begin-of-text token.
      end_ids: Ids that end a text according to the checkpoint; empty if it does not say.
      own_template: Chat template that came with the checkpoint, whether it is used or not.
      warnings: What a reader should know about how its files were read, one sentence each.
    """

    kind = PUBLISHED
    warnings: tuple[str, ...] = ()

    def __init__(
        self,
        tokenizer: HuggingFaceTokenizer,
        *,
        special_tokens: bool = True,
        end_ids: tuple[int, ...] = (),
        template: ChatTemplate | None = None,
        named_tokens: dict[str, str] | None = None,
        own_template: str | None = None,
    ):
        super().__init__(tokenizer)
        self.special_tokens, self.end_ids = special_tokens, end_ids
        self._tokenizer.no_padding()
        self._tokenizer.no_truncation()
        self._template = template
        self._named, self.own_template = named_tokens or {}, own_template
        tokens = self.tokens()
        require(len(tokens) > 0, "the tokenizer has no tokens.")
        self.vocab_size = max(tokens) + 1
        beyond = [
            int(number) for number in np.concatenate(self.around()) if number >= self.vocab_size
        ]
        if beyond:
            raise SdslError(
                f"the tokenizer adds the id {beyond[0]} around every text, and its tokens end at "
                f"{self.vocab_size - 1}."
            )

    @classmethod
    def load(
        cls, folder: Path, *, special_tokens: bool = True, chat_template: str = NO_TEMPLATE
    ) -> PublishedTokenizer:
        """Reads the tokenizer of a checkpoint.

        Args:
          folder: Folder of the checkpoint.
          special_tokens: Whether texts get the special tokens that tokenizer.json adds around them.
          chat_template: "none" for texts as they are; "own" to make each text a user's first
            message in the checkpoint's template; or a file with a template. Templates run in a
            sandbox.

        Raises:
          SdslError: tokenizer.json or the template is missing or damaged.
        """
        path = folder / TOKENIZER
        require(
            path.exists(),
            f"the folder {folder} has no {TOKENIZER}; without it texts cannot become the ids that the model was trained on "
            "(AutoTokenizer.from_pretrained(...).save_pretrained(...) of transformers writes one).",
        )
        settings = _optional_json(folder / SETTINGS)
        names = ("bos_token", "eos_token", "unk_token", "pad_token")
        named = {
            name: _token_text(settings[name]) for name in names if settings.get(name) is not None
        }
        tokenizer, own = read_tokenizer(path), _own_template(folder, settings)
        template_file = folder / (TEMPLATE if (folder / TEMPLATE).is_file() else SETTINGS)
        loaded = cls(
            tokenizer,
            special_tokens=special_tokens,
            end_ids=_end_ids(folder, named, tokenizer),
            template=chosen_template(chat_template, own, template_file),
            named_tokens=named,
            own_template=own,
        )
        loaded.warnings = _missing_tokens(folder, settings, tokenizer)
        return loaded

    def _ids(self, text: str, special_tokens: bool, literal: bool = False) -> np.ndarray:
        """Ids of a text, with the special tokens around it or without.

        `literal`: Whether special tokens spelled in the text stay text.
        """
        self._tokenizer.encode_special_tokens = literal
        ids = self._tokenizer.encode(text, add_special_tokens=special_tokens).ids
        self._tokenizer.encode_special_tokens = False
        return np.asarray(ids, np.int32)

    def encode(self, text: str) -> np.ndarray:
        """Ids of a text, int32 [tokens]."""
        if self._template is None:
            return self._ids(text, self.special_tokens)
        # The template writes the special tokens itself.
        message = {"role": "user", "content": text}
        return self._ids(self._template.render([message], self._named), False)

    def encode_as_published(self, text: str) -> np.ndarray:
        """Ids of a text with the special tokens that the file adds, whatever the settings are.
        Special tokens spelled in the text stay text.
        """
        return self._ids(text, True, literal=True)

    def encode_plain(self, text: str, *, literal: bool = False) -> np.ndarray:
        """Ids of a text with nothing around it.

        Args:
          text: Text to encode.
          literal: Whether special tokens spelled in the text, such as <|endoftext|>, stay text.
        """
        return self._ids(text, False, literal)

    def around(self) -> tuple[np.ndarray, np.ndarray]:
        """Special tokens before and after every text; empty if they are switched off."""
        inner, whole = self.encode_plain("a"), self._ids("a", self.special_tokens)
        for n in range(len(whole) - len(inner) + 1):
            if np.array_equal(whole[n : n + len(inner)], inner):
                return whole[:n], whole[n + len(inner) :]
        return whole[:0], whole[:0]

    def encode_prompt(self, text: str, longest: int) -> EncodedPrompt:
        """Ids of a prompt. A text that is too long keeps its last tokens, after the special tokens
        or within the template.

        Raises:
          SdslError: Special tokens or the template leave no room for the text.
        """
        plain = self.encode_plain(text)
        before, behind = self.around() if self._template is None else (plain[:0], plain[:0])
        taken = (
            len(before) + len(behind)
            if self._template is None
            else len(self.encode(text)) - len(plain)
        )
        room = longest - taken
        require(
            room >= 1,
            f"prompts may have {longest} tokens, of which special tokens or the chat template take {taken}.",
        )
        cut = len(plain) > room
        if self._template is None:
            return EncodedPrompt(np.concatenate([before, plain[-room:], behind]), len(before), cut)
        # Text that is cut and written into the template again may come out a little longer.
        ids = self.encode(text)
        while len(ids) > longest and room > 1:
            ids = self.encode(self.decode(plain[-room:]))
            room -= max(1, len(ids) - longest)
        return EncodedPrompt(ids, 0, cut)

    def decode(self, ids: np.ndarray) -> str:
        """The text of some ids, with special tokens; ids beyond the vocabulary have no text."""
        return self._tokenizer.decode(
            [int(i) for i in ids if i < self.vocab_size], skip_special_tokens=False
        )

    def special_ids(self) -> set[int]:
        """Ids of the tokens that the file calls special."""
        return {
            number
            for number, token in self._tokenizer.get_added_tokens_decoder().items()
            if token.special
        }


def _optional_json(path: Path) -> dict[str, Any]:
    return read_json_object(path) if path.exists() else {}


def _missing_tokens(
    folder: Path, settings: dict[str, Any], tokenizer: HuggingFaceTokenizer
) -> tuple[str, ...]:
    """A warning about tokens that other files of the folder add to those of tokenizer.json; empty
    if there are none.
    """
    added, more = settings.get("added_tokens_decoder"), settings.get("additional_special_tokens")
    tokens = [settings.get("bos_token"), settings.get("eos_token"), *_optional_json(folder / ADDED)]
    tokens += list(added.values()) if isinstance(added, dict) else []
    tokens += more if isinstance(more, list) else []
    texts = dict.fromkeys(_token_text(token) for token in tokens if token)
    missing = [text for text in texts if text and tokenizer.token_to_id(text) is None]
    if not missing:
        return ()
    named = ", ".join(map(reprlib.repr, missing[:_NAMED])) + (
        f" and {len(missing) - _NAMED} more" if len(missing) > _NAMED else ""
    )
    return (
        f"{folder / TOKENIZER} lacks tokens that {SETTINGS} or {ADDED} beside it names, and texts that spell them are cut into "
        f"pieces: {named}.",
    )


def _token_text(token: Any) -> str:
    return str(token.get("content", "")) if isinstance(token, dict) else str(token)


def _end_ids(
    folder: Path, named: dict[str, str], tokenizer: HuggingFaceTokenizer
) -> tuple[int, ...]:
    """Ids that end a text: from generation_config.json, else config.json, else the end-of-text
    token.
    """
    for name in ("generation_config.json", "config.json"):
        value = _optional_json(folder / name).get("eos_token_id")
        values = value if isinstance(value, list) else [value]
        if all(isinstance(v, int) and not isinstance(v, bool) and v >= 0 for v in values):
            return tuple(values)
    number = tokenizer.token_to_id(named.get("eos_token", ""))
    return () if number is None else (number,)


def read_template(path: Path) -> str:
    """Reads a file with a chat template.

    Raises:
      SdslError: The file cannot be read.
    """
    try:
        return read_text(path, "chat template", newlines=False, limit=_LONGEST_TEMPLATE)
    except SdslError as error:
        raise SdslError(
            f"{str(error).rstrip('.')}; give a file, {OWN_TEMPLATE} or {NO_TEMPLATE}."
        ) from None


def chosen_template(choice: str, own: str | None, file: Path) -> ChatTemplate | None:
    """The template that a user chose: none, the checkpoint's own, or that of a file.

    Args:
      wanted: "none", "own" or the path of a file.
      own: Template that came with the checkpoint; None if there is none.
      file: File that the checkpoint's own template came from.

    Raises:
      SdslError: The checkpoint has no template, or the file cannot be read.
    """
    if choice == NO_TEMPLATE:
        return None
    if choice != OWN_TEMPLATE:
        return ChatTemplate(read_template(Path(choice)), choice)
    if own is None:
        raise SdslError(
            f"the checkpoint {file if file.is_file() else file.parent} comes with no chat template."
        )
    return ChatTemplate(own, file)


def _own_template(folder: Path, settings: dict[str, Any]) -> str | None:
    if (folder / TEMPLATE).is_file():
        return read_template(folder / TEMPLATE)
    template = settings.get("chat_template")
    if isinstance(template, list):  # several, by name
        template = next(
            (
                t.get("template")
                for t in template
                if isinstance(t, dict) and t.get("name") == "default"
            ),
            None,
        )
    return template if isinstance(template, str) else None
