"""Feeds damaged files to every reader of users' files, in a process of its own with bounded memory;
started by test_fuzz.py.

    python tests/fuzz_child.py FOLDER INPUTS KIND...

prints a line of JSON for each kind: what went wrong with which of so many inputs. Any answer is right, and an
`SdslError` of one sentence that names the file. Weights and prose are left alone: nobody could know
that they are damaged.
"""

from __future__ import annotations

import bz2
import dataclasses
import gzip
import json
import lzma
import os
import random
import re
import resource
import shutil
import signal
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

os.environ["TF_CPP_MIN_LOG_LEVEL"] = "3"
ROOT = Path(__file__).parents[1]
sys.path[:0] = [
    str(ROOT),
    str(ROOT / "tests"),
    str(ROOT / "tests" / "checkpoints"),
]

import numpy as np
import pyarrow
import pyarrow.parquet
from published_checkpoints import copy_checkpoint

from sdsl_jax.checkpoints.loading import LoadOptions, load_model
from sdsl_jax.checkpoints.model_folder import load_model_folder
from sdsl_jax.codesign.predict import targets_from_csv
from sdsl_jax.config import load_protocol, load_study
from sdsl_jax.config.problem_flags import load_problem
from sdsl_jax.data.documents import documents
from sdsl_jax.data.prompts import read_prompts
from sdsl_jax.errors import SdslError
from sdsl_jax.fitting import law_files as laws
from sdsl_jax.fitting.tables import read_loss_table, read_pair_table
from sdsl_jax.hardware import load_hardware, save_hardware
from sdsl_jax.measurement.served_acceptance import judge
from sdsl_jax.measurement.server_reports import read_report
from sdsl_jax.records import ModelRecord, read_json, read_table, write_table
from sdsl_jax.user_files import read_text

SECONDS, MEMORY = 10, 2 << 30


class TooSlow(BaseException):
    """An input took too long."""


class Kind(NamedTuple):
    """Files of one kind.

    Attributes:
      make: writes a good one into an empty folder, and returns its path.
      read: reads it; given that path, or the folder where the reader wants one.
      damage: what is done to its bytes.
    """

    make: Callable[[Path], Path]
    read: Callable[[Path], object]
    damage: Callable[[random.Random, bytes], bytes]


# What is done to files
# ------------------------------------------------------------------------------------------------------

_NUMBER = re.compile(rb"-?\d+(\.\d+)?([eE][-+]?\d+)?")
_HUGE = (
    b"1e999",
    b"9" * 400,
    b"9" * 6000,
    b"-1",
    b"0",
    b"1e18",
    b"2147483648",
    b"1e308",
    b"NaN",
    b"-1e-320",
    b"",
)
_VALUES = (
    b"null",
    b"true",
    b"[]",
    b"{}",
    b'"x"',
    b"[" * 3,
    b'""',
    b"\\",
    b"\xc3",
    b"\x00",
    b"\xef\xbb\xbf",
    b"\r",
)
_DEEP = (b"[", b"{", b'{"a":', b"(", b"a.", b"{{", b'"')


def _truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def _flip(rng: random.Random, data: bytes, end: int | None = None) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 8])):
        if changed:
            changed[rng.randrange(min(len(changed), end or len(changed)))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def _structure(rng: random.Random, data: bytes) -> bytes:
    """A character of the syntax goes, comes twice, or becomes another."""
    at = [i for i, byte in enumerate(data) if not chr(byte).isalnum()]
    if not at:
        return data
    i = rng.choice(at)
    other = rng.choice([b"", data[i : i + 1] * 2, b",", b"\n", b"=", b'"', b"\x00", b"]"])
    return data[:i] + other + data[i + 1 :]


def _number(rng: random.Random, data: bytes) -> bytes:
    found = list(_NUMBER.finditer(data))
    if not found:
        return data
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(_HUGE) + data[match.end() :]


def _value(rng: random.Random, data: bytes) -> bytes:
    """A value becomes one of another type, or nothing that any syntax knows."""
    found = list(re.finditer(rb'"[^"\n]*"|' + _NUMBER.pattern + rb"|true|false|null", data))
    if not found:
        return rng.choice(_VALUES) + data
    match = rng.choice(found)
    return data[: match.start()] + rng.choice(_VALUES) + data[match.end() :]


def _deep(rng: random.Random, data: bytes) -> bytes:
    found = list(_NUMBER.finditer(data)) or [re.match(rb"", data)]
    at = rng.choice(found).start()
    return data[:at] + rng.choice(_DEEP) * rng.choice([300, 3_000, 100_000]) + data[at:]


def _lines(rng: random.Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    i = rng.randrange(len(lines))
    lines[i : i + 1] = rng.choice([[], [lines[i]] * 2, [lines[i][::-1]], [lines[i] * 50]])
    return b"\n".join(lines)


def text(rng: random.Random, data: bytes) -> bytes:
    """Damage to a file of text with a syntax."""
    return rng.choice(
        [_truncate, _structure, _structure, _number, _number, _value, _value, _deep, _lines, _flip]
    )(rng, data)


def whole(rng: random.Random, data: bytes) -> bytes:
    """Damage to a compressed file."""
    return rng.choice([_truncate, _flip])(rng, data)


def compressed(compress: Callable[[bytes], bytes]) -> Callable[[random.Random, bytes], bytes]:
    """Damage to a compressed file, or to what is compressed in it."""

    def damage(rng: random.Random, data: bytes) -> bytes:
        return whole(rng, compress(data)) if rng.random() < 0.5 else compress(text(rng, data))

    return damage


def head(size: Callable[[bytes], int]) -> Callable[[random.Random, bytes], bytes]:
    """Damage to the header of a binary file, and to the length of the whole."""

    def damage(rng: random.Random, data: bytes) -> bytes:
        end = size(data)
        how = rng.choice([_truncate, _flip, _flip, _flip, _number, _value, _structure])
        if how is _truncate:
            return _truncate(rng, data)
        if how is _flip:
            return _flip(rng, data, end)
        return how(rng, data[:end]) + data[end:]

    return damage


def zstd(data: bytes) -> bytes:
    """A zstandard file."""
    return pyarrow.compress(data, codec="zstd", asbytes=True)


def safetensors_head(data: bytes) -> int:
    """Bytes of the header of a safetensors file, its length included."""
    return 8 + int.from_bytes(data[:8], "little")


# Files, and who reads them
# --------------------------------------------------------------------------------------------------


def content(name: str, data: str | bytes) -> Callable[[Path], Path]:
    """Makes a file."""

    def make(folder: Path) -> Path:
        (folder / name).write_bytes(data.encode() if isinstance(data, str) else data)
        return folder / name

    return make


def experiment(name: str) -> Callable[[Path], Path]:
    """Copies a file that ships with the project."""
    return content(name, (ROOT / "experiments" / name).read_bytes())


_RNG = np.random.default_rng(0)
_SIZES = [(n, 20 * n) for n in (1_000_000, 3_000_000, 10_000_000, 30_000_000) for _ in range(2)]
LOSSES = "params_nonembedding,train_tokens,loss_nats\n" + "".join(
    f"{n},{d},{2 + 400 / n**0.34 + 400 / d**0.28 + 0.01 * _RNG.normal():.6f}\n" for n, d in _SIZES
)
PAIRS = "draft_params,draft_loss,target_params,target_loss,alpha\n" + "".join(
    f"{n},{3 - 0.1 * i},{n * 30},{2.5 - 0.05 * i},{0.5 + 0.05 * i}\n"
    for i, (n, _) in enumerate(_SIZES)
)
TARGETS = "target_params,draft_tokens,target_tokens,name\n70e9,1e12,15e12,big\n7B,1T,2T,small\n"
JSONL = "".join(
    json.dumps({"text": f"The house of the people, number {i}.", "id": i}) + "\n" for i in range(20)
)
TEMPLATE = (
    "{% for m in messages %}<|{{ m['role'] }}|>{{ m['content'][:1000] }}\n{% endfor %}{{ 'a' * 3 }}"
)


def law_file(folder: Path) -> Path:
    """A loss law and an acceptance law in one file, as a study writes them."""
    found = {}
    for key, published, forms in (
        ("loss_law", laws.PUBLISHED_LOSS_LAWS, laws.LOSS_LAWS),
        ("acceptance_laws", laws.PUBLISHED_ACCEPTANCE_LAWS, laws.ACCEPTANCE_LAWS),
    ):
        law = next(iter(published.values()))
        name = next(name for name, form in forms.items() if isinstance(law, form))
        values = {
            f.name: float(getattr(law, f.name))
            for f in dataclasses.fields(law)
            if f.name != "about"
        }
        draws = {k: [v, v * 1.01, v * 0.99] for k, v in values.items()}
        entry = {
            "law": name,
            "coefficients": values,
            "draws": draws,
            "warnings": ["a warning"],
            "interval_basis": "x",
        }
        found[key] = entry if key == "loss_law" else [entry]
    (folder / "fits.json").write_text(json.dumps(found, indent=1))
    return folder / "fits.json"


def read_laws(path: Path) -> None:
    """Both laws of a file."""
    laws.load_law(str(path), "loss")
    laws.load_law(str(path), "acceptance")


RECORD = ModelRecord("draft-1", "draft", 400, 800, 1000, 0, 2.5, 12.2, "digest")


def records(name: str) -> Callable[[Path], Path]:
    """A table of records and its schema, of which one is damaged."""

    def make(folder: Path) -> Path:
        write_table(folder, "models", [RECORD, RECORD])
        return folder / name

    return make


def json_record(folder: Path) -> Path:
    """A record file of JSON."""
    (folder / "stages.json").write_text(
        json.dumps({"fit": {"key": "x", "seconds": 1.5}, "train": {"key": "y"}})
    )
    return folder / "stages.json"


def device(folder: Path) -> Path:
    """A hardware file."""
    save_hardware(load_hardware("h100"), folder / "device.toml")
    return folder / "device.toml"


def parquet(folder: Path) -> Path:
    """A Parquet file of documents; its structure stands at the end."""
    table = pyarrow.table({"text": [json.loads(line)["text"] for line in JSONL.splitlines()]})
    pyarrow.parquet.write_table(table, folder / "corpus.parquet", compression="snappy")
    return folder / "corpus.parquet"


def read_corpus(path: Path) -> None:
    """Every document of a file."""
    for document in documents(path):
        for _ in document:
            pass


def checkpoint(case: str, name: str) -> Callable[[Path], Path]:
    """A published checkpoint, of which one file is damaged."""

    def make(folder: Path) -> Path:
        copied = copy_checkpoint(case, folder / "checkpoint")
        settings = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": "!",
            "chat_template": TEMPLATE,
        }
        (copied / "tokenizer_config.json").write_text(json.dumps(settings))
        return copied / name

    return make


def sharded(folder: Path) -> Path:
    """A checkpoint of several files and their index."""
    from safetensors.numpy import load_file, save_file

    copied = copy_checkpoint("qwen2", folder / "checkpoint")
    tensors = load_file(copied / "model.safetensors")
    (copied / "model.safetensors").unlink()
    names = sorted(tensors)
    parts = {
        "model-00001-of-00002.safetensors": names[::2],
        "model-00002-of-00002.safetensors": names[1::2],
    }
    for file, held in parts.items():
        save_file({name: tensors[name] for name in held}, copied / file, metadata={"format": "pt"})
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {n: file for file, held in parts.items() for n in held},
    }
    (copied / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    return copied / "model.safetensors.index.json"


def gguf_file(folder: Path) -> Path:
    """A GGUF file."""
    import test_gguf

    test_gguf.write(folder / "m.gguf", test_gguf.model_of(), test_gguf.tokenizer_of([]), "gpt-2")
    return folder / "m.gguf"


def gguf_head(data: bytes) -> int:
    """Bytes of the header of the GGUF file: weights are the rest, some 400 kB."""
    return max(data.rfind(b"output_norm.weight") + 60, 64)


def model_folder(name: str) -> Callable[[Path], Path]:
    """A model of our own, of which one file is damaged."""

    def make(folder: Path) -> Path:
        import test_model_folder

        from sdsl_jax.data.tokenizer import BPETokenizer

        test_model_folder.write(
            folder / "model-10", BPETokenizer.train(test_model_folder.TEXT, 280)
        )
        return next(p for p in sorted((folder / "model-10").rglob("*")) if str(p).endswith(name))

    return make


def own_folder(path: Path) -> object:
    """The model whose folder a file lies in."""
    return load_model_folder(next(p for p in path.parents if p.name == "model-10"))


def published(path: Path) -> object:
    """The checkpoint that a file belongs to, and a prompt in its own template."""
    folder = path if path.suffix == ".gguf" else path.parent
    template = "own" if (path.parent / "tokenizer_config.json").exists() else "none"
    return load_model(folder, LoadOptions(chat_template=template)).tokenizer.encode_prompt(
        "the house", 4_000
    )


def template(path: Path) -> object:
    """A prompt in the template of a file."""
    folder = (
        copy_checkpoint("gpt2", path.parent / "gpt2")
        if not (path.parent / "gpt2").exists()
        else path.parent / "gpt2"
    )
    loaded = load_model(folder, LoadOptions(chat_template=str(path)))
    return loaded.tokenizer.encode_prompt("the house", 4_000)


def server_sample(name: str) -> Callable[[Path], Path]:
    """A recorded report of a server."""
    sample = ROOT / "tests/measurement/server_reports" / name
    return content(name, sample.read_text("utf-8"))


def server_report(path: Path) -> object:
    """A server's own figures, and what they say."""
    return judge(read_report(read_text(path, "report"), f"the report {path}"))


def losses(path: Path) -> object:
    """A table of losses."""
    return read_loss_table(path, "params_nonembedding", "train_tokens", "loss_nats", "", 4.0)


def pairs(path: Path) -> object:
    """A table of pairs."""
    return read_pair_table(path, None, "overlap", None, None)


KINDS = {
    "losses.csv": Kind(content("losses.csv", LOSSES), losses, text),
    "losses.csv.gz": Kind(
        content("losses.csv.gz", gzip.compress(LOSSES.encode(), mtime=0)), losses, whole
    ),
    "losses.csv.xz": Kind(content("losses.csv.xz", lzma.compress(LOSSES.encode())), losses, whole),
    "losses.csv.bz2": Kind(content("losses.csv.bz2", bz2.compress(LOSSES.encode())), losses, whole),
    "pairs.csv": Kind(content("pairs.csv", PAIRS), pairs, text),
    "targets.csv": Kind(content("targets.csv", TARGETS), targets_from_csv, text),
    "vllm_metrics.txt": Kind(server_sample("vllm_metrics.txt"), server_report, text),
    "vllm_log.txt": Kind(server_sample("vllm_log.txt"), server_report, text),
    "sglang_metrics.txt": Kind(server_sample("sglang_metrics.txt"), server_report, text),
    "sglang_log.txt": Kind(server_sample("sglang_log.txt"), server_report, text),
    "llama_cpp_log_inline.txt": Kind(
        server_sample("llama_cpp_log_inline.txt"), server_report, text
    ),
    "study.toml": Kind(experiment("quickstart.toml"), load_study, text),
    "problem.toml": Kind(experiment("serve-70b.toml"), lambda path: load_problem(path, {}), text),
    "protocol.toml": Kind(experiment("paper-protocol.toml"), load_protocol, text),
    "hardware.toml": Kind(device, load_hardware, text),
    "fits.json": Kind(law_file, read_laws, text),
    "models.csv": Kind(records("models.csv"), lambda path: read_table(path.parent, "models"), text),
    "schema.json": Kind(
        records("schema.json"), lambda path: read_table(path.parent, "models"), text
    ),
    "stages.json": Kind(json_record, read_json, text),
    "corpus.txt": Kind(content("corpus.txt", JSONL), read_corpus, whole),
    "corpus.jsonl": Kind(content("corpus.jsonl", JSONL), read_corpus, text),
    "corpus.jsonl.gz": Kind(
        content("corpus.jsonl.gz", gzip.compress(JSONL.encode(), mtime=0)), read_corpus, whole
    ),
    "corpus.jsonl.zst": Kind(content("corpus.jsonl.zst", zstd(JSONL.encode())), read_corpus, whole),
    "corpus.parquet": Kind(parquet, read_corpus, whole),
    "prompts.txt": Kind(content("prompts.txt", JSONL), read_prompts, whole),
    "prompts.jsonl": Kind(content("prompts.jsonl", JSONL), read_prompts, text),
    "config.json": Kind(checkpoint("qwen3", "config.json"), published, text),
    "tokenizer.json": Kind(checkpoint("gpt2", "tokenizer.json"), published, text),
    "tokenizer_config.json": Kind(checkpoint("gpt2", "tokenizer_config.json"), published, text),
    "model.safetensors": Kind(
        checkpoint("llama-2", "model.safetensors"), published, head(safetensors_head)
    ),
    "index.json": Kind(sharded, published, text),
    "m.gguf": Kind(gguf_file, published, head(gguf_head)),
    "model.json": Kind(model_folder("model.json"), own_folder, text),
    "record.json": Kind(model_folder("record.json"), own_folder, text),
    "own tokenizer.json": Kind(model_folder("tokenizer.json"), own_folder, text),
    "manifest.json": Kind(model_folder("manifest.json"), own_folder, text),
    "template.jinja": Kind(content("template.jinja", TEMPLATE), template, text),
}


def fault(read: Callable[[Path], object], path: Path) -> str | None:
    """What is wrong with how a damaged file was read; None if nothing is."""
    signal.alarm(SECONDS)
    try:
        read(path)
    except SdslError as error:
        sentence = str(error)
        named = [p.name for p in (path, *path.parents) if p.name]
        if "\n" in sentence or not sentence.endswith((".", "?")):
            return f"no single sentence: {sentence[:300]!r}"
        return (
            None
            if any(name in sentence for name in named[:3])
            else f"no file named: {sentence[:300]!r}"
        )
    except TooSlow:
        return f"more than {SECONDS} s"
    except BaseException as error:
        return f"{type(error).__name__}: {str(error)[:300]!r}"
    finally:
        signal.alarm(0)
    return None


def run(name: str, folder: Path, inputs: int) -> list[str]:
    """The faults of one kind."""
    kind, rng = KINDS[name], random.Random(name)
    folder.mkdir(parents=True)
    path = kind.make(folder)
    good = path.read_bytes()
    before = fault(kind.read, path)
    faults = [f"undamaged: {before}"] if before else []
    for number in range(inputs):
        path.write_bytes(kind.damage(rng, good))
        if (what := fault(kind.read, path)) is not None:
            shutil.copy(path, folder / f"fault-{number}")
            faults.append(f"{number}: {what}")
    return faults


def _too_slow(*_: object) -> None:
    raise TooSlow


def main() -> None:
    """Runs the kinds that the command line names."""
    warnings.simplefilter("ignore")
    signal.signal(signal.SIGALRM, _too_slow)
    folder, inputs, *names = sys.argv[1:]
    # The libraries that some readers load, and threads of theirs, take room that no input is to
    # blame for.
    for name in names:
        made = Path(folder) / "undamaged" / name
        made.mkdir(parents=True)
        fault(KINDS[name].read, KINDS[name].make(made))
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    for name in names:
        faults = run(name, Path(folder) / name, int(inputs))
        print(json.dumps({"kind": name, "faults": faults}), flush=True)


if __name__ == "__main__":
    main()
