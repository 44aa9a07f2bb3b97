"""Smaller models cut out of a larger one: early exits, fewer blocks, heads and units, slices.

A cut copies numbers and computes none: what keeps everything is the larger model bit by bit.
Suffixes as in `transformer`.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from sdsl_jax.config import FamilyConfig
from sdsl_jax.errors import require
from sdsl_jax.models.config import ModelConfig
from sdsl_jax.models.family import SIZE_TOLERANCE, count, member
from sdsl_jax.models.kernels import token_losses
from sdsl_jax.models.transformer import Params, abstract_params, forward

# Hidden sizes of pruned models come in steps of so many units.
_UNIT_STEP = 4
# More stretches of neighbours than this are gathered instead of joined.
_MOST_RUNS = 8

# What the axes of each parameter run over.
_AXES: dict[str, tuple[str, ...]] = {
    "embedding": ("", "channels"),
    "positions": ("", "channels"),
    "project_in": ("", "channels"),
    "project_out": ("channels", ""),
    "head": ("channels", ""),
    "exit_head": ("", "channels"),
    "exit_map": ("channels", "channels"),
    "exit_bias": ("channels",),
    "final_norm": ("channels",),
    "attention_norm": ("channels",),
    "mlp_norm": ("channels",),
    "query_norm": ("",),
    "key_norm": ("",),
    "qkv": ("channels", "heads"),
    "qkv_bias": ("heads",),
    "out": ("queries", "channels"),
    "out_bias": ("channels",),
    "gate_up": ("channels", "projections"),
    "gate_up_bias": ("projections",),
    "down": ("units", "channels"),
    "down_bias": ("channels",),
}


class Kept(NamedTuple):
    """What a smaller model keeps of a larger one.

    Attributes:
      blocks: Blocks, counted from 0.
      channels: Number of leading channels of the residual stream.
      heads: Key-value heads of each kept block; the query heads that share one stay with it.
      units: Hidden units of each kept block's MLP.
    """

    blocks: tuple[int, ...]
    channels: int
    heads: Int[np.ndarray, "blocks K"]
    units: Int[np.ndarray, "blocks F"]


def leading(smaller: ModelConfig) -> Kept:
    """The slice of a larger model that has the shape of a smaller one: the first of everything."""
    blocks = tuple(range(smaller.layers))
    heads, units = np.arange(smaller.kv_heads), np.arange(smaller.hidden)
    return Kept(
        blocks, smaller.width, np.stack([heads for _ in blocks]), np.stack([units for _ in blocks])
    )


def cut(config: ModelConfig, params: Params, kept: Kept) -> tuple[ModelConfig, Params]:
    """A smaller model out of a larger one. It can be differentiated.

    Args:
      config: Architecture of the larger model.
      params: Its parameters.
      kept: What to keep.

    Returns:
      The smaller model's architecture and parameters.

    Raises:
      SdslError: The larger model does not hold that, or channels are to be cut of one whose
        embedding has a width of its own.
    """
    c = config
    require(
        all(0 <= b < c.layers for b in kept.blocks)
        and 0 < kept.channels <= c.width
        and kept.heads.max(initial=0) < c.kv_heads
        and kept.units.max(initial=0) < c.hidden,
        f"a model of {c.layers} blocks, width {c.width}, {c.kv_heads} key-value heads and {c.hidden} hidden units does not hold "
        "all that is to be kept of it.",
    )
    require(
        kept.channels == c.width or not c.embedding_width,
        "channels of a model whose embedding has a width of its own cannot be cut.",
    )
    groups = c.heads // c.kv_heads
    smaller = dataclasses.replace(
        c,
        layers=len(kept.blocks),
        width=kept.channels,
        heads=kept.heads.shape[1] * groups,
        kv_heads=kept.heads.shape[1],
        hidden=kept.units.shape[1],
    )

    def index(axis: str, block: int, size: int) -> np.ndarray:
        """Entries to keep along an axis."""
        if axis == "":
            return np.arange(size)
        if axis == "channels":
            return np.arange(kept.channels if size == c.width else size)
        if axis in ("units", "projections"):
            starts = np.arange(0, size, c.hidden)
            return (starts[:, None] + kept.units[block]).ravel()
        queries = (kept.heads[block][:, None] * groups + np.arange(groups)).ravel()
        slots = [queries]
        if axis == "heads":  # queries, then keys, then values
            slots += [c.heads + kept.heads[block], c.heads + c.kv_heads + kept.heads[block]]
        return (np.concatenate(slots)[:, None] * c.head_dim + np.arange(c.head_dim)).ravel()

    whole = dict(jax.tree_util.tree_flatten_with_path(params)[0])
    abstract = jax.tree_util.tree_flatten_with_path(abstract_params(smaller))[0]
    leaves = []
    for path, _ in abstract:
        names: list[Any] = [getattr(key, "key", "") for key in path]
        block, source = -1, path
        if names[0] == "blocks":
            block = names[1]
            source = (path[0], jax.tree_util.DictKey(kept.blocks[block]), *path[2:])
        x = whole[source]
        name = next(n for n in names if n in _AXES)
        for number, axis in enumerate(_AXES[name]):
            x = _taken(x, index(axis, block, x.shape[number]), number)
        leaves.append(x)
    return smaller, jax.tree.unflatten(jax.tree.structure(abstract_params(smaller)), leaves)


def _taken(x: Array, index: np.ndarray, axis: int) -> Array:
    """Entries along an axis. Few stretches of neighbours are sliced, because the gradient of a slice
    is no scatter."""
    if np.array_equal(index, np.arange(x.shape[axis])):
        return x
    runs = np.split(index, np.flatnonzero(np.diff(index) != 1) + 1)
    if len(runs) > _MOST_RUNS:
        return jnp.take(x, index, axis=axis)
    parts = [jax.lax.slice_in_dim(x, run[0], run[-1] + 1, axis=axis) for run in runs]
    return jnp.concatenate(parts, axis=axis)


def early_exit(config: ModelConfig, params: Params, blocks: int) -> tuple[ModelConfig, Params]:
    """The first blocks of a model, with a readout of their own: an affine map, which changes nothing
    yet, and copies of the last norm and of the head.

    Args:
      config: Architecture of the whole model.
      params: Its parameters.
      blocks: Blocks to keep; with all of them, and an embedding that is the head, it is the whole
        model bit by bit.

    Raises:
      SdslError: It has fewer blocks, or an embedding with a width of its own.
    """
    exit_config = exit_shape(config, blocks)
    everything = leading(config)
    kept = everything._replace(
        blocks=everything.blocks[:blocks],
        heads=everything.heads[:blocks],
        units=everything.units[:blocks],
    )
    values = nnx.to_pure_dict(cut(config, params, kept)[1])
    D = config.width
    values["exit_map"], values["exit_bias"] = jnp.zeros((D, D)), jnp.zeros(D)
    head = values["embedding"] if config.tie_embeddings else values.pop("head").T
    values["exit_head"] = jnp.copy(head)
    return exit_config, _params(exit_config, values)


def _params(config: ModelConfig, values: dict[str, Any]) -> Params:
    structure = jax.tree.structure(abstract_params(config))
    return jax.tree.unflatten(structure, jax.tree.leaves(values))


def exit_shape(config: ModelConfig, blocks: int) -> ModelConfig:
    """The architecture of an early exit after so many blocks.

    Raises:
      SdslError: The model has fewer, or an embedding with a width of its own.
    """
    require(
        1 <= blocks <= config.layers,
        f"an exit after {blocks} blocks was asked for; the model has {config.layers}.",
    )
    return dataclasses.replace(config, layers=blocks, tie_embeddings=True, early_exit=True)


def exit_of_size(config: ModelConfig, params: int) -> ModelConfig:
    """The early exit with about so many non-embedding parameters.

    Raises:
      SdslError: None is within 10%.
    """
    exits = [exit_shape(config, blocks) for blocks in range(1, config.layers + 1)]
    return _nearest(exits, params, "an early exit")


def pruned_of_size(config: ModelConfig, params: int, layers: int) -> ModelConfig:
    """The shape with about so many non-embedding parameters that keeps the residual stream, `layers`
    blocks (all of them if 0), and equal shares of heads and hidden units.

    Raises:
      SdslError: None is within 10%.
    """
    layers = min(layers, config.layers) or config.layers
    groups = config.heads // config.kv_heads

    def shape(kv_heads: int, hidden: int) -> ModelConfig:
        return dataclasses.replace(
            config, layers=layers, kv_heads=kv_heads, heads=kv_heads * groups, hidden=hidden
        )

    whole = count(shape(config.kv_heads, config.hidden), 0).nonembedding
    heads = max(1, round(config.kv_heads * min(1.0, params / whole)))
    hidden = {*range(_UNIT_STEP, config.hidden, _UNIT_STEP), config.hidden}
    return _nearest([shape(heads, units) for units in sorted(hidden)], params, "a pruned model")


def _nearest(shapes: Sequence[ModelConfig], params: int, what: str) -> ModelConfig:
    sizes = [count(shape, 0).nonembedding for shape in shapes]
    at = int(np.argmin([abs(size - params) for size in sizes]))
    require(
        abs(sizes[at] / params - 1) <= SIZE_TOLERANCE,
        f"{what} of {params:g} non-embedding parameters cannot be cut out of the target; the nearest one has {sizes[at]:,}"
        + (
            f", and the sizes are {', '.join(f'{s:,}' for s in sizes)}."
            if len(sizes) <= 12
            else "."
        ),
    )
    return shapes[at]


def nested_of_sizes(
    family: FamilyConfig, sizes: Sequence[int], vocab_size: int
) -> tuple[ModelConfig, ...]:
    """Members of a family that are slices of the largest of them, the smallest first: their heads
    all have the family's size.

    Raises:
      SdslError: The family makes no such members.
    """
    models = tuple(member(family, n, vocab_size, whole_heads=True) for n in sorted(sizes))
    dimensions = ("layers", "width", "heads", "kv_heads", "hidden")
    whole = {name: getattr(models[-1], name) for name in dimensions}
    for size, model in zip(sorted(sizes), models):
        larger = [name for name in dimensions if getattr(model, name) > whole[name]]
        require(
            not larger,
            f"the draft of {size:g} parameters has more {' and '.join(larger)} than the largest one, so it is no slice of it; "
            "choose other sizes, or another family.head_dim.",
        )
    return models


class Importance(NamedTuple):
    """How much the loss depends on parts of a model, to first order.

    Attributes:
      heads: Of each block's key-value heads.
      units: Of each block's hidden units.
    """

    heads: Float[np.ndarray, "L K"]
    units: Float[np.ndarray, "L F"]


def importance(
    config: ModelConfig, params: Params, windows: Int[np.ndarray, "W T+1"]
) -> Importance:
    """The importance of heads and hidden units: the mean over windows of |∂ loss/∂ gate|, for a gate
    of value 1 that multiplies what the part gives (1905.10650).

    Args:
      config: Architecture.
      params: Parameters.
      windows: Windows of text.
    """
    c = config

    def of_window(tokens: Int[Array, " T+1"]) -> tuple[list[Array], list[Array]]:
        gradients = jax.grad(lambda p: _loss(c, p, tokens[None]))(params)
        heads, units = [], []
        for block, slope in zip(_blocks(params), _blocks(gradients)):
            # A gate on rows of a matrix has their product with the gradient as its own.
            by_row = (block["attention"]["out"] * slope["attention"]["out"]).sum(axis=1)
            heads.append(jnp.abs(by_row.reshape(c.kv_heads, -1).sum(axis=1)))
            units.append(jnp.abs((block["mlp"]["down"] * slope["mlp"]["down"]).sum(axis=1)))
        return heads, units

    heads, units = jax.jit(functools.partial(jax.lax.map, of_window))(jnp.asarray(windows))
    mean = lambda parts: np.stack([np.asarray(x).mean(axis=0) for x in parts])  # noqa: E731
    return Importance(mean(heads), mean(units))


def _loss(config: ModelConfig, params: Params, tokens: Int[Array, "B T+1"]) -> Array:
    logits, _ = forward(config, params, tokens[:, :-1])
    return token_losses(logits, tokens[:, 1:])[0].mean()


def _blocks(params: Params) -> list[dict[str, Any]]:
    blocks = nnx.to_pure_dict(params)["blocks"]
    return [blocks[i] for i in range(len(blocks))]


def best_blocks(
    config: ModelConfig, params: Params, windows: Int[np.ndarray, "W T+1"], layers: int
) -> tuple[int, ...]:
    """The blocks that are left when the one whose loss raises the loss least is dropped, again and
    again.

    Args:
      config: Architecture.
      params: Parameters.
      windows: Windows of text to take the loss on.
      layers: Blocks to keep.
    """
    kept, everything, tokens = tuple(range(config.layers)), leading(config), jnp.asarray(windows)
    loss = jax.jit(_loss, static_argnums=0)
    while len(kept) > layers:
        candidates = [kept[:i] + kept[i + 1 :] for i in range(len(kept))]
        losses = [
            float(loss(*cut(config, params, _only(everything, blocks)), tokens))
            for blocks in candidates
        ]
        kept = candidates[int(np.argmin(losses))]
    return kept


def _only(kept: Kept, blocks: tuple[int, ...]) -> Kept:
    of = list(blocks)
    return kept._replace(blocks=blocks, heads=kept.heads[of], units=kept.units[of])


def pruned(
    config: ModelConfig,
    params: Params,
    smaller: ModelConfig,
    windows: Int[np.ndarray, "W T+1"],
) -> Params:
    """The parameters of a pruned model: the blocks, and of each block the heads and hidden units, that
    matter most to the loss.

    Args:
      config: Architecture of the larger model.
      params: Its parameters.
      smaller: Architecture of the pruned one, see `pruned_of_size`.
      windows: Windows of text that the loss is taken on.
    """
    blocks = best_blocks(config, params, windows, smaller.layers)
    config, params = cut(config, params, _only(leading(config), blocks))
    rank = importance(config, params, windows)

    def most(scores: Float[np.ndarray, "L n"], count: int) -> Int[np.ndarray, "L count"]:
        return np.sort(np.argsort(-scores, axis=1, kind="stable")[:, :count], axis=1)

    kept = Kept(
        tuple(range(config.layers)),
        config.width,
        most(rank.heads, smaller.kv_heads),
        most(rank.units, smaller.hidden),
    )
    return cut(config, params, kept)[1]


@dataclasses.dataclass(frozen=True)
class SharedTrunk:
    """A model whose embedding and first blocks are another model's and are not trained.

    Attributes:
      model: Architecture.
      blocks: Blocks that are not trained.
    """

    model: ModelConfig
    blocks: int

    def trained(self, params: Params) -> Any:
        """A tree like the parameters: whether each of them is trained."""

        def is_trained(path: tuple[Any, ...], _: Any) -> bool:
            names: list[Any] = [getattr(key, "key", "") for key in path]
            if names[0] == "blocks":
                return names[1] >= self.blocks
            return names[0] not in ("embedding", "positions")

        return jax.tree_util.tree_map_with_path(is_trained, params)


@dataclasses.dataclass(frozen=True)
class Nested:
    """A model that is trained together with slices of itself.

    Attributes:
      model: Architecture of the whole.
      slices: Architectures of the slices, without the whole.
    """

    model: ModelConfig
    slices: tuple[ModelConfig, ...]

    def logits(
        self, params: Params, tokens: Int[Array, "B T"], remat: bool
    ) -> Float[Array, "K B T V"]:
        """Logits of every slice, and of the whole at the end."""
        models = [cut(self.model, params, leading(c)) for c in (*self.slices, self.model)]
        return jnp.stack([forward(c, p, tokens, remat=remat)[0] for c, p in models])
