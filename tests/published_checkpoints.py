"""Small published checkpoints for tests: tests/checkpoints/published and a tokenizer of characters."""

import shutil
import string
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

CASES = Path(__file__).parent / "checkpoints" / "published"
# 53 ids, as many as the cases have rows.
LETTERS = [" ", *string.ascii_letters[:50]]


def character_tokenizer(letters=LETTERS) -> Tokenizer:
    """An id for every character, so that ids always make a text that gives them again; 0 for all others and 1 to end a text."""
    vocab = {token: i for i, token in enumerate(["?", "!", *letters])}
    tokenizer = Tokenizer(models.WordLevel(vocab, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    tokenizer.decoder = decoders.Fuse()
    return tokenizer


def copy_checkpoint(case: str, folder: Path, letters=LETTERS) -> Path:
    """A case with a tokenizer."""
    shutil.copytree(CASES / case, folder)
    character_tokenizer(letters).save(str(folder / "tokenizer.json"))
    return folder
