"""Checkpoints from strangers: whatever was done to a header, a configuration or a tokenizer, one sentence says so."""

import random
import resource
import struct
import time
from pathlib import Path

import pytest
from checkpoints.test_gguf import TOKENIZER, model_of, write
from published_checkpoints import copy_checkpoint

from sdsl_jax.checkpoints.interop import open_checkpoint, open_gguf
from sdsl_jax.data.published import PublishedTokenizer
from sdsl_jax.errors import SdslError

pytestmark = pytest.mark.slow
MUTATIONS, SECONDS, GIGABYTES = 200, 10, 2


def mutated(content: bytes, reach: int, rng: random.Random) -> bytes:
    """Truncated, or with bits, lengths and stretches changed within the first `reach` bytes."""
    changed, way = bytearray(content), rng.randrange(6)
    if way == 0:
        return content[: rng.randrange(len(content))]
    for _ in range(rng.choice((1, 1, 1, 2, 5))):
        at = rng.randrange(min(reach, len(changed)))
        if way == 1:
            changed[at] ^= 1 << rng.randrange(8)
        elif way == 2:
            changed[at : at + 8] = struct.pack(
                "<Q", rng.choice((0, 10**12, 2**31, 2**60, 2**64 - 1))
            )
        elif way == 3:
            changed[at : at + 4] = struct.pack(
                "<I", rng.choice((0, 8, 9, 12, 10**6, 2**31, 2**32 - 1))
            )
        elif way == 4:
            del changed[at : at + rng.randrange(1, 20)]
        else:
            changed[at : at + 1] = rng.choice(
                (b"\0", b"[" * 5000, b"9" * 5000, b'"', b"-", b"1e999")
            )
    return bytes(changed)


@pytest.fixture(autouse=True)
def memory():
    """So little that whoever believes a length of a header fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    held = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (held + (GIGABYTES << 30), hard))
    yield
    resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def gguf(folder: Path):
    write(folder / "m.gguf", model_of(), TOKENIZER, "gpt-2")
    content = (folder / "m.gguf").read_bytes()
    return (
        folder / "m.gguf",
        content.index(b"output_norm.weight") + 2000,
        lambda: open_gguf(folder / "m.gguf"),
    )


def hugging_face(name: str, file: str):
    def make(folder: Path):
        copy_checkpoint(name, folder / "model")
        path = folder / "model" / file
        content = path.read_bytes()
        reach = (
            8 + int.from_bytes(content[:8], "little")
            if file.endswith(".safetensors")
            else len(content)
        )
        return path, reach, lambda: open_checkpoint(folder / "model")

    return make


def tokenizer(folder: Path):
    copy_checkpoint("llama-2", folder / "model")
    path = folder / "model" / "tokenizer.json"
    return (
        path,
        path.stat().st_size,
        lambda: PublishedTokenizer.load(folder / "model").encode("a text of 3 words"),
    )


KINDS = {
    "gguf": gguf,
    "config-llama": hugging_face("llama-3", "config.json"),
    "config-gpt2": hugging_face("gpt2", "config.json"),
    "config-neox": hugging_face("pythia", "config.json"),
    "index": hugging_face("llama-3", "model.safetensors.index.json"),
    "safetensors": hugging_face("qwen2", "model.safetensors"),
    "tokenizer": tokenizer,
}


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_damaged_files_give_one_sentence_or_are_read(kind, tmp_path):
    rng = random.Random(0)
    path, reach, use = KINDS[kind](tmp_path)
    content, refused = path.read_bytes(), 0
    for _ in range(MUTATIONS):
        path.write_bytes(mutated(content, reach, rng))
        begun = time.process_time()
        try:
            use()
        except SdslError as error:
            refused += 1
            assert "\n" not in str(error)  # noqa: PT017
            assert len(str(error)) < 900  # noqa: PT017
        assert time.process_time() - begun < SECONDS
    assert refused > MUTATIONS / 4
    path.write_bytes(content)
    use()
