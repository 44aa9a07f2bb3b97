"""The architecture of a Transformer: one description for our own families and for published ones."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from sdsl_jax.errors import require

Activation = Literal["silu", "gelu", "gelu_tanh", "relu"]


@dataclass(frozen=True)
class RopeScaling:
    """How rotary frequencies change so that a model reaches beyond the length it was first trained
    at.

    Attributes:
      kind: "linear" divides all frequencies by `factor`. "llama3" divides those that turn fewer
        than `low` times within the original length, keeps those that turn more than `high` times,
        and changes linearly in the turns between the two. "yarn" (2309.00071) changes linearly in
        the index of the frequency between those that turn `high` and `low` times, and multiplies
        cosines and sines by `attention_factor`.
      factor: Factor by which lengths grow.
      original_positions: Length that the model was first trained at.
      low: Turns within the original length up to which a frequency is divided in full.
      high: Turns from which it stays unchanged.
      attention_factor: Factor of cosines and sines.
    """

    kind: Literal["linear", "llama3", "yarn"]
    factor: float
    original_positions: int = 0
    low: float = 1.0
    high: float = 4.0
    attention_factor: float = 1.0

    def __post_init__(self):
        require(
            self.factor > 0,
            f"the factor of the rope scaling is {self.factor}; it must be positive.",
        )
        require(
            self.kind == "linear" or self.original_positions >= 1,
            f"a rope scaling of the kind {self.kind} needs the original length; it is {self.original_positions}.",
        )
        require(
            self.low < self.high,
            f"the rope scaling's turns run from {self.low} to {self.high}; they must increase.",
        )


@dataclass(frozen=True)
class ModelConfig:
    """The architecture of one Transformer. Hashable, so it can be a static argument of a jitted
    function.

    The defaults are those of our own families; the fields after `norm_epsilon` serve published
    ones.

    Attributes:
      vocab_size: Rows of the embedding, unless it is truncated.
      width: Size of the residual stream.
      layers: Number of blocks; 0 for a head on its target's tables that is one matrix.
      heads: Number of query heads.
      kv_heads: Number of key-value heads.
      head_dim: Size of a head.
      hidden: Hidden size of the MLP.
      qk_norm: Whether each head's query and key pass an RMS norm before the rotation.
      tie_embeddings: Whether the head is the embedding.
      rope_theta: Base of the rotary frequencies.
      norm_epsilon: Added to the variance in every norm.
      norm: RMS norm without bias, or layer norm with one.
      norm_position: Before attention and MLP, or after their output is added to the residual
        stream.
      final_norm: Whether a norm precedes the head.
      residual: Whether the MLP sees what attention added, or both read the block's input.
      activation: Activation of the MLP; "gelu_tanh" is the approximation by a hyperbolic tangent.
      gated: Whether the MLP multiplies its activation by a second projection.
      qkv_bias: Whether queries, keys and values have biases.
      out_bias: Whether the output of attention has a bias.
      mlp_bias: Whether the projections of the MLP have biases.
      positions: Rotary, or a learned table that is added to the embedding.
      rotary_dim: Number of leading entries of a head that are rotated; all of them if 0.
      rope_scaling: Change of the rotary frequencies.
      max_positions: Rows of the learned table; with rotary positions the announced length, or 0.
      embedding_width: Size of an embedding that two projections connect with the residual stream; 0
        for `width`.
      scale_embedding: Whether embeddings are multiplied by √width on their way in.
      early_exit: Whether the readout is that of an exit from a larger model: an affine map of the
        residual stream before the final norm, and a head of its own, stored like an embedding.
      readout_ids: Ids that the head computes logits of, ascending; all of them if empty. The others
        get logits so low that they have no probability: a draft's α is then at most the target's
        probability of these ids.
      truncated: Whether the tables hold the rows of `readout_ids` alone: the embedding has one more
        row, the last, which all other ids share, and a head of its own has their columns.
      logit_size: Number of logits; `vocab_size` if 0. Logits beyond the table are so low that they
        have no probability. For pairs whose tables are padded to different sizes.
    """

    vocab_size: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    hidden: int
    qk_norm: bool = True
    tie_embeddings: bool = True
    rope_theta: float = 10_000.0
    norm_epsilon: float = 1e-6
    norm: Literal["rms", "layer"] = "rms"
    norm_position: Literal["pre", "post"] = "pre"
    final_norm: bool = True
    residual: Literal["sequential", "parallel"] = "sequential"
    activation: Activation = "silu"
    gated: bool = True
    qkv_bias: bool = False
    out_bias: bool = False
    mlp_bias: bool = False
    positions: Literal["rotary", "learned"] = "rotary"
    rotary_dim: int = 0
    rope_scaling: RopeScaling | None = None
    max_positions: int = 0
    embedding_width: int = 0
    scale_embedding: bool = True
    logit_size: int = 0
    early_exit: bool = False
    readout_ids: tuple[int, ...] = ()
    truncated: bool = False

    def __post_init__(self):
        for name in ("vocab_size", "width", "layers", "heads", "kv_heads", "head_dim", "hidden"):
            value, least = getattr(self, name), int(name != "layers")
            require(value >= least, f"the model's {name} is {value}; it must be at least {least}.")
        require(
            self.heads % self.kv_heads == 0,
            f"{self.heads} query heads cannot share {self.kv_heads} key-value heads.",
        )
        if self.positions == "rotary":
            require(
                self.head_dim % 2 == 0 or self.rotary_dim > 0,
                f"the head size is {self.head_dim}; rotary positions need an even one.",
            )
            require(
                0 <= self.rotary_dim <= self.head_dim and self.rotary_dim % 2 == 0,
                f"{self.rotary_dim} entries of a head of {self.head_dim} are rotated; it must be an even number of them.",
            )
        else:
            require(
                self.max_positions >= 1,
                "a table of learned positions needs max_positions, its number of rows.",
            )
        require(
            self.norm_position == "pre" or self.residual == "sequential",
            "norms after the residual stream and parallel branches exclude one another.",
        )
        require(
            not self.early_exit or (self.tie_embeddings and not self.embedding_width),
            "an early exit has a head beside an embedding of the same width.",
        )
        require(
            self.logit_size == 0 or self.logit_size >= self.vocab_size,
            f"the model gives {self.logit_size} logits; they cannot be fewer than the {self.vocab_size} rows of its table.",
        )
        ids = self.readout_ids
        require(
            not ids or (sorted(set(ids)) == [*ids] and ids[0] >= 0 and ids[-1] < self.vocab_size),
            f"the model's readout_ids must be different ids below {self.vocab_size}, in ascending order.",
        )
        require(
            not self.truncated or (ids and not self.early_exit),
            "truncated tables need readout_ids, the ids whose rows they hold, and are not for early exits.",
        )
        require(
            self.embedding_width >= 0,
            f"the embedding's width is {self.embedding_width}; it must not be negative.",
        )

    def description(self) -> dict[str, Any]:
        """The fields as plain values. Those that only published families set are left out at their
        defaults.

        Digests and files of our own models therefore stay the same when such a field is added.
        """
        defaults = {f.name: f.default for f in dataclasses.fields(self)}
        own = list(defaults)[: list(defaults).index("norm_epsilon") + 1]
        values = dataclasses.asdict(self)
        return {
            name: value for name, value in values.items() if name in own or value != defaults[name]
        }

    @property
    def ids(self) -> int:
        """Number of ids that have logits."""
        return self.logit_size or self.vocab_size

    @property
    def embedding_rows(self) -> int:
        """Rows of the embedding."""
        return len(self.readout_ids) + 1 if self.truncated else self.vocab_size

    @property
    def readout_size(self) -> int:
        """Number of logits that the head computes."""
        return len(self.readout_ids) or self.vocab_size

    @property
    def position_limit(self) -> int:
        """Number of positions the model can tell apart: the rows of a learned table; rotary
        positions set no limit.
        """
        return self.max_positions if self.positions == "learned" else np.iinfo(np.int32).max

    @property
    def rotated(self) -> int:
        """Entries of a head that rotary positions turn; 0 with learned positions."""
        return 0 if self.positions == "learned" else self.rotary_dim or self.head_dim

    @property
    def table_width(self) -> int:
        """Columns of the embedding and rows of the head."""
        return self.embedding_width or self.width
