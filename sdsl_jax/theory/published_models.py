"""Published models as their configuration files describe them: shapes of targets, and those that are
small enough to draft.

Parameters are counted from those files: embeddings once where they are tied. A tokenizer is named
after the family; targets are families and sizes that a draft shares it with. Token budgets are
those that the publishers state.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from sdsl_jax.theory.hardware import Shape


class PublishedDraft(NamedTuple):
    """A published model that is small enough to draft.

    Attributes:
      name: Its name on the Hugging Face Hub.
      total_params: All of its parameters.
      layers: Number of blocks.
      width: Width of the residual stream.
      kv_share: Key-value heads times head size, over the width.
      heads: Query heads, which tensor parallelism deals out whole.
      vocab_size: Rows of the embedding, padding included.
      embedding_tables: 1 where embedding and head share a table, else 2.
      tokens: Training tokens.
      targets: Published models with the same tokenizer; empty if none is larger.
      largest_target: Parameters of the largest of them; 0 if there is none.
      query_share: Query heads times head size, over the width.
    """

    name: str
    total_params: float
    layers: int
    width: int
    kv_share: float
    heads: int
    vocab_size: int
    embedding_tables: int
    tokens: float
    targets: str
    largest_target: float
    query_share: float = 1.0

    @property
    def shape(self) -> Shape:
        """The published layers, width and all else that its cost depends on."""
        params = self.total_params - self.embedding_tables * self.vocab_size * self.width
        query, kv = self.query_share * self.width, self.kv_share * self.width
        return Shape(
            params, self.layers, self.width, query, kv, self.vocab_size, self.embedding_tables
        )

    def size(self, counted: str) -> float:
        """Parameters by the count that is named: "total" or "non_embedding"."""
        return self.total_params if counted == "total" else float(self.shape.params)

    @property
    def family(self) -> str:
        """The family's name, such as Qwen2.5."""
        return self.name.partition("/")[2].split("-")[0]

    @property
    def padded(self) -> bool:
        """Whether larger models of the family pad the vocabulary further; engines that compare sizes then refuse."""
        return "padded" in self.targets


_OPT = (50_272, 1, 180e9, "OPT-6.7B to 66B", 66e9)
# The larger models pad their vocabulary further, to 152,064 rows: engines that compare sizes ask
# for the draft to be padded too.
_QWEN25 = (
    151_936,
    1,
    18e12,
    "Qwen2.5-7B to 72B, QwQ-32B (vocabulary padded to 152,064 there)",
    72.7e9,
)
_QWEN3 = (151_936, 1, 36e12, "Qwen3-8B to 32B, 30B-A3B and 235B-A22B", 235e9)
_LLAMA32 = (128_256, 1, 9e12, "Llama-3-8B and 70B, Llama-3.1-8B to 405B, Llama-3.3-70B", 405.9e9)
_SMOLLM2 = (49_152, 1)
_PYTHIA = (
    50_304,
    2,
    300e9,
    "Pythia-6.9B and 12B, GPT-NeoX-20B (vocabularies padded further)",
    20.6e9,
)

PUBLISHED_DRAFTS = (
    PublishedDraft("facebook/opt-125m", 125.2e6, 12, 768, 1.0, 12, *_OPT),
    PublishedDraft("facebook/opt-350m", 331.2e6, 24, 1024, 1.0, 16, *_OPT),
    PublishedDraft("facebook/opt-1.3b", 1.316e9, 24, 2048, 1.0, 32, *_OPT),
    PublishedDraft("facebook/opt-2.7b", 2.652e9, 32, 2560, 1.0, 32, *_OPT),
    PublishedDraft("Qwen/Qwen2.5-0.5B", 494.0e6, 24, 896, 1 / 7, 14, *_QWEN25),
    PublishedDraft("Qwen/Qwen2.5-1.5B", 1.544e9, 28, 1536, 1 / 6, 12, *_QWEN25),
    PublishedDraft("Qwen/Qwen2.5-3B", 3.086e9, 36, 2048, 1 / 8, 16, *_QWEN25),
    PublishedDraft("Qwen/Qwen3-0.6B", 596.0e6, 28, 1024, 1.0, 16, *_QWEN3, query_share=2.0),
    PublishedDraft("Qwen/Qwen3-1.7B", 1.721e9, 28, 2048, 0.5, 16, *_QWEN3),
    PublishedDraft("meta-llama/Llama-3.2-1B", 1.236e9, 16, 2048, 1 / 4, 32, *_LLAMA32),
    PublishedDraft("meta-llama/Llama-3.2-3B", 3.213e9, 28, 3072, 1 / 3, 24, *_LLAMA32),
    PublishedDraft(
        "HuggingFaceTB/SmolLM2-135M",
        134.5e6,
        30,
        576,
        1 / 3,
        9,
        *_SMOLLM2,
        2e12,
        "SmolLM2-1.7B",
        1.71e9,
    ),
    PublishedDraft(
        "HuggingFaceTB/SmolLM2-360M",
        361.8e6,
        32,
        960,
        1 / 3,
        15,
        *_SMOLLM2,
        4e12,
        "SmolLM2-1.7B",
        1.71e9,
    ),
    PublishedDraft(
        "HuggingFaceTB/SmolLM2-1.7B", 1.711e9, 24, 2048, 1.0, 32, *_SMOLLM2, 11e12, "", 0.0
    ),
    PublishedDraft("EleutherAI/pythia-70m", 70.4e6, 6, 512, 1.0, 8, *_PYTHIA),
    PublishedDraft("EleutherAI/pythia-160m", 162.3e6, 12, 768, 1.0, 12, *_PYTHIA),
    PublishedDraft("EleutherAI/pythia-410m", 405.3e6, 24, 1024, 1.0, 16, *_PYTHIA),
    PublishedDraft("EleutherAI/pythia-1b", 1.012e9, 16, 2048, 1.0, 8, *_PYTHIA),
    PublishedDraft("EleutherAI/pythia-1.4b", 1.415e9, 24, 2048, 1.0, 16, *_PYTHIA),
    PublishedDraft("EleutherAI/pythia-2.8b", 2.775e9, 32, 2560, 1.0, 32, *_PYTHIA),
)


def _shape(
    total: float,
    layers: int,
    width: int,
    query_width: int,
    kv_width: int,
    vocab_size: int,
    experts: int = 1,
    active_experts: int = 1,
    expert_width: int = 0,
    embedding_tables: int = 2,
) -> Shape:
    """A shape by all parameters; each expert has three matrices of width × expert_width."""
    return Shape(
        float(total - embedding_tables * vocab_size * width),
        float(layers),
        float(width),
        float(query_width),
        float(kv_width),
        float(vocab_size),
        float(embedding_tables),
        float(layers * experts * 3 * width * expert_width),
        float(experts),
        float(active_experts),
    )


_LARGER_MODELS = {
    "Llama-3-8B": _shape(8.030e9, 32, 4096, 4096, 1024, 128_256),
    "Llama-3-70B": _shape(70.554e9, 80, 8192, 8192, 1024, 128_256),
    "Llama-3.1-8B": _shape(8.030e9, 32, 4096, 4096, 1024, 128_256),
    "Llama-3.1-70B": _shape(70.554e9, 80, 8192, 8192, 1024, 128_256),
    "Llama-3.3-70B": _shape(70.554e9, 80, 8192, 8192, 1024, 128_256),
    "Llama-3.1-405B": _shape(405.85e9, 126, 16_384, 16_384, 1024, 128_256),
    "Mistral-7B": _shape(7.248e9, 32, 4096, 4096, 1024, 32_768),
    "Mixtral-8x7B": _shape(46.703e9, 32, 4096, 4096, 1024, 32_000, 8, 2, 14_336),
    "Qwen2.5-7B": _shape(7.616e9, 28, 3584, 3584, 512, 152_064),
    "Qwen2.5-14B": _shape(14.770e9, 48, 5120, 5120, 1024, 152_064),
    "Qwen2.5-32B": _shape(32.764e9, 64, 5120, 5120, 1024, 152_064),
    "Qwen2.5-72B": _shape(72.706e9, 80, 8192, 8192, 1024, 152_064),
    "Qwen3-4B": _shape(4.022e9, 36, 2560, 4096, 1024, 151_936, embedding_tables=1),
    "Qwen3-8B": _shape(8.191e9, 36, 4096, 4096, 1024, 151_936),
    "Qwen3-14B": _shape(14.768e9, 40, 5120, 5120, 1024, 151_936),
    "Qwen3-32B": _shape(32.762e9, 64, 5120, 8192, 1024, 151_936),
    "Qwen3-30B-A3B": _shape(30.532e9, 48, 2048, 4096, 512, 151_936, 128, 8, 768),
    "Qwen3-235B-A22B": _shape(235.094e9, 94, 4096, 8192, 512, 151_936, 128, 8, 1536),
    "gpt-oss-20b": _shape(20.915e9, 24, 2880, 4096, 512, 201_088, 32, 4, 2880),
    "gpt-oss-120b": _shape(116.829e9, 36, 2880, 4096, 512, 201_088, 128, 4, 2880),
}


def published_shape(name: str) -> Shape | None:
    """The shape of the published model that a name means, None if it is not known here.

    Publishers before a slash, capitals, and endings such as -Instruct make no difference.
    """
    plain = name.strip().rstrip("/").rpartition("/")[2].lower()
    shapes = {draft.name.rpartition("/")[2]: draft.shape for draft in PUBLISHED_DRAFTS}
    # The longest name counts: Qwen3-30B-A3B is not what a shorter one means.
    for known, shape in sorted((shapes | _LARGER_MODELS).items(), key=lambda item: -len(item[0])):
        if re.match(rf"(meta-)?{re.escape(known.lower())}(?![a-z0-9.])", plain):
            return shape
    return None
