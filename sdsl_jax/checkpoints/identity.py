"""Which model is this? A digest of its configuration, its weights in the type they are used in, and
its tokenizer.

An identity is the kind of digest, a colon and a digest, such as "model-v2:3f…". Equal identities
mean one model, wherever its files are and in whichever format: a copy, a folder and the GGUF file
made from it, a model of ours and its export. Different identities of one kind mean different
models. A checkpoint read in float32 and in bfloat16 has two identities, because the probabilities
differ. Identities of different kinds, such as the bare digests of older records, cannot be
compared.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from sdsl_jax.checkpoints.model_folder import LoadedModel
from sdsl_jax.data.published import PublishedTokenizer
from sdsl_jax.data.tokenizer import PROBE, Tokenizer, rules
from sdsl_jax.models import ModelConfig

# 64-bit numbers in a row, and rows processed together: they stay in a core's cache.
_ROW, _TOGETHER = 512, 256
# One odd random factor for each place in a row.
_FACTORS = np.frombuffer(
    hashlib.shake_256(b"sdsl_jax array digest").digest(8 * _ROW), "<u8"
).astype(np.uint64) | np.uint64(1)
# A sum modulo 2^64 sees of a top bit only whether it changed an even number of times, so each top
# bit is copied to a lower place first. 29 divides no type's size, so neighbouring numbers meet
# other bits of one another.
_SHIFT = np.uint64(29)


def array_name(path: Any) -> str:
    """Name of an array in a plan, from its path in the parameters."""
    names = [
        str(getattr(key, "key", getattr(key, "idx", getattr(key, "name", "")))) for key in path
    ]
    return ".".join(name for name in names if name != "value")


def array_digest(array: np.ndarray) -> bytes:
    """Digest of a large array that costs little beside reading it.

    It is the SHA-256 of the array's shape, its type, and for each row of 4 kB the sum of the row's
    64-bit numbers, each multiplied by a fixed random factor for its place. The SHA-256 of all bytes
    would take as long as reading them from the disk cache and converting them; these sums take a
    tenth of that.

    A change made without regard to the factors, however regular, goes unseen by a sum with a
    probability of at most about 2^-29. That tells models apart, but does not protect against
    somebody who wants two models to look alike. Bytes after the last whole row are digested one by
    one.

    Args:
      array: Array of any shape and type; contiguous ones are fastest.
    """
    digest = hashlib.sha256(f"{array.shape} {array.dtype}\n".encode())
    # By way of bytes: types such as bfloat16 are none of numpy's own.
    data = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    whole = data.size // (8 * _ROW) * (8 * _ROW)
    rows = data[:whole].view(np.uint64).reshape(-1, _ROW)
    for begin in range(0, len(rows), _TOGETHER):
        part = rows[begin : begin + _TOGETHER]
        digest.update((part ^ (part >> _SHIFT)) @ _FACTORS)
    digest.update(data[whole:].tobytes())
    return digest.digest()


_KIND = "model-v2"


def identity_of(config: ModelConfig, arrays: Mapping[str, bytes], tokenizer: Tokenizer) -> str:
    """The identity of a model.

    Args:
      config: Architecture.
      arrays: `array_digest` of each array by its name in a plan, in any order.
      tokenizer: Tokenizer; its tokens, merges and the ids of a probe text count. Whether a user
        wants special tokens or a chat template does not.
    """
    digest = hashlib.sha256(json.dumps(_plain(config), sort_keys=True).encode())
    for name in sorted(arrays):
        digest.update(f"\n{name} ".encode() + arrays[name])
    digest.update(json.dumps(sorted(tokenizer.tokens().items())).encode())
    digest.update(json.dumps(rules(tokenizer)).encode())
    published = isinstance(tokenizer, PublishedTokenizer)
    probed = tokenizer.encode_as_published(PROBE) if published else tokenizer.encode(PROBE)  # type: ignore[attr-defined]
    digest.update(np.asarray(probed, np.int64).tobytes())
    return f"{_KIND}:{digest.hexdigest()}"


def identity(model: LoadedModel) -> str:
    """The identity of a loaded model. That of a published one was computed while its weights were
    read.
    """
    recorded = model.record.params_digest
    if _kind(recorded) == _KIND:
        return recorded
    arrays = {
        array_name(path): array_digest(np.asarray(leaf))
        for path, leaf in jax.tree_util.tree_leaves_with_path(model.params)
    }
    return identity_of(model.config, arrays, model.tokenizer)


def are_different(one: str, other: str) -> bool:
    """Whether two digests or identities are known to belong to different models."""
    return bool(one and other) and _kind(one) == _kind(other) and one != other


def _kind(digest: str) -> str:
    return digest.partition(":")[0] if ":" in digest else ""


def _plain(config: ModelConfig) -> dict[str, Any]:
    """The settings that affect the computation, as plain values. Fractions are rounded to float32,
    which is all that GGUF keeps.
    """

    def rounded(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: rounded(item) for key, item in value.items()}
        return float(np.float32(value)) if isinstance(value, float) else value

    values = config.description()
    # The number of logits belongs to a pair, not to one model, and an announced length changes
    # nothing that is computed.
    values.pop("logit_size", None)
    if config.positions == "rotary":
        values.pop("max_positions", None)
    return rounded(values)
