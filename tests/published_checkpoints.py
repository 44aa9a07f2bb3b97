"""Small published checkpoints for tests: tests/checkpoints/published and a tokenizer of characters."""

import shutil
import string
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

from sdsl_jax.checkpoints.interop import export_llama
from sdsl_jax.checkpoints.model_folder import LoadedModel
from sdsl_jax.data.tokenizer import hugging_face_json

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


def export_model(model: LoadedModel, folder: Path) -> Path:
    """A model of ours as a published one, with the same weights."""
    content, end = hugging_face_json(model.tokenizer)
    return export_llama(
        model.model,
        folder,
        tokenizer=content,
        end_token=end,
        end_ids=model.tokenizer.end_ids,
        max_positions=model.longest,
    )


def copy_checkpoint(case: str, folder: Path, letters=LETTERS) -> Path:
    """A case with a tokenizer."""
    shutil.copytree(CASES / case, folder)
    character_tokenizer(letters).save(str(folder / "tokenizer.json"))
    return folder
