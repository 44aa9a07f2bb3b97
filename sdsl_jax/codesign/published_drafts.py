"""Published models that are small enough to draft, as their configuration files describe them.

Parameters are counted from those files: embeddings once where they are tied. A tokenizer is named after the family; targets
are families and sizes that a draft shares it with. Token budgets are those that the publishers state.
"""

from __future__ import annotations

from typing import NamedTuple

from sdsl_jax.theory.hardware import Shape


class PublishedDraft(NamedTuple):
    """One model.

    Attributes:
      name: on the Hugging Face Hub.
      total_params: all parameters.
      layers: blocks.
      width: of the residual stream.
      kv_share: key-value heads times head size, over the width.
      vocab_size: rows of the embedding, padding included.
      embedding_tables: 1 where embedding and head share theirs.
      tokens: trained on.
      targets: published models with the same tokenizer; empty if none is larger.
      query_share: query heads times head size, over the width.
    """

    name: str
    total_params: float
    layers: int
    width: int
    kv_share: float
    vocab_size: int
    embedding_tables: int
    tokens: float
    targets: str
    query_share: float = 1.0

    @property
    def shape(self) -> Shape:
        """Layers, width and all else that its cost depends on, as published."""
        params = self.total_params - self.embedding_tables * self.vocab_size * self.width
        query, kv = self.query_share * self.width, self.kv_share * self.width
        return Shape(params, self.layers, self.width, query, kv, self.vocab_size, self.embedding_tables)

    @property
    def family(self) -> str:
        """Name of the family, such as Qwen2.5."""
        return self.name.partition("/")[2].split("-")[0]


_OPT = (50_272, 1, 180e9, "OPT-6.7B to 66B")
# The larger models pad their vocabulary further, to 152,064 rows: engines that compare sizes ask for the draft to be padded too.
_QWEN25 = (151_936, 1, 18e12, "Qwen2.5-7B to 72B (vocabulary padded to 152,064 there)")
_QWEN3 = (151_936, 1, 36e12, "Qwen3-8B to 32B, 30B-A3B and 235B-A22B")
_LLAMA32 = (128_256, 1, 9e12, "Llama-3.1-8B to 405B, Llama-3.3-70B")
_SMOLLM2 = (49_152, 1)
_PYTHIA = (50_304, 2, 300e9, "Pythia-6.9B and 12B, GPT-NeoX-20B (vocabularies padded further)")

PUBLISHED_DRAFTS = (
    PublishedDraft("facebook/opt-125m", 125.2e6, 12, 768, 1.0, *_OPT),
    PublishedDraft("facebook/opt-350m", 331.2e6, 24, 1024, 1.0, *_OPT),
    PublishedDraft("facebook/opt-1.3b", 1.316e9, 24, 2048, 1.0, *_OPT),
    PublishedDraft("facebook/opt-2.7b", 2.652e9, 32, 2560, 1.0, *_OPT),
    PublishedDraft("Qwen/Qwen2.5-0.5B", 494.0e6, 24, 896, 1 / 7, *_QWEN25),
    PublishedDraft("Qwen/Qwen2.5-1.5B", 1.544e9, 28, 1536, 1 / 6, *_QWEN25),
    PublishedDraft("Qwen/Qwen2.5-3B", 3.086e9, 36, 2048, 1 / 8, *_QWEN25),
    PublishedDraft("Qwen/Qwen3-0.6B", 596.0e6, 28, 1024, 1.0, *_QWEN3, query_share=2.0),
    PublishedDraft("Qwen/Qwen3-1.7B", 1.721e9, 28, 2048, 0.5, *_QWEN3),
    PublishedDraft("meta-llama/Llama-3.2-1B", 1.236e9, 16, 2048, 1 / 4, *_LLAMA32),
    PublishedDraft("meta-llama/Llama-3.2-3B", 3.213e9, 28, 3072, 1 / 3, *_LLAMA32),
    PublishedDraft("HuggingFaceTB/SmolLM2-135M", 134.5e6, 30, 576, 1 / 3, *_SMOLLM2, 2e12, "SmolLM2-1.7B"),
    PublishedDraft("HuggingFaceTB/SmolLM2-360M", 361.8e6, 32, 960, 1 / 3, *_SMOLLM2, 4e12, "SmolLM2-1.7B"),
    PublishedDraft("HuggingFaceTB/SmolLM2-1.7B", 1.711e9, 24, 2048, 1.0, *_SMOLLM2, 11e12, ""),
    PublishedDraft("EleutherAI/pythia-70m", 70.4e6, 6, 512, 1.0, *_PYTHIA),
    PublishedDraft("EleutherAI/pythia-160m", 162.3e6, 12, 768, 1.0, *_PYTHIA),
    PublishedDraft("EleutherAI/pythia-410m", 405.3e6, 24, 1024, 1.0, *_PYTHIA),
    PublishedDraft("EleutherAI/pythia-1b", 1.012e9, 16, 2048, 1.0, *_PYTHIA),
    PublishedDraft("EleutherAI/pythia-1.4b", 1.415e9, 24, 2048, 1.0, *_PYTHIA),
    PublishedDraft("EleutherAI/pythia-2.8b", 2.775e9, 32, 2560, 1.0, *_PYTHIA),
)

# How the names of targets begin, after the publisher and in lower case, that share the tokenizer of a family of drafts.
_TARGETS = {
    "opt": ("opt-",),
    "Qwen2.5": ("qwen2.5-",),
    "Qwen3": ("qwen3-",),
    "Llama": ("llama-3.1-", "llama-3.3-", "meta-llama-3.1-"),
    "SmolLM2": ("smollm2-",),
    "pythia": ("pythia-", "gpt-neox-"),
}


def family_of_drafts(target: str) -> str | None:
    """The family of drafts that share the tokenizer of a target, by the target's name; None if the name tells none."""
    name = target.rpartition("/")[2].lower()
    return next((family for family, starts in _TARGETS.items() if name.startswith(starts)), None)
