"""Which published tensors each of our arrays consists of, in both directions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from sdsl_jax.checkpoints.interop.layouts import Layout
from sdsl_jax.models.config import ModelConfig


class Piece(NamedTuple):
    """A published tensor, and where it stands in one of our arrays.

    Attributes:
      tensor: its name.
      shape: as it is published.
      transposed: whether its rows are our columns.
      skip: leading rows that are left out.
      order: our columns (entries, of a vector) for each of its rows; they follow the piece before
        where this is None.
    """

    tensor: str
    shape: tuple[int, ...]
    transposed: bool = False
    skip: int = 0
    order: np.ndarray | None = None


# Of each of our arrays, by its path in the parameters, such as "blocks.0.attention.qkv".
Plan = dict[str, tuple[Piece, ...]]


def plan(config: ModelConfig, layout: Layout) -> Plan:
    """The pieces of every array of a model."""
    c = config
    found: Plan = {}

    def matrix(
        path: str, inputs: int, outputs: tuple[int, ...], names: tuple[str, ...], order=None
    ) -> None:
        shapes = [(size, inputs) if layout.transposed else (inputs, size) for size in outputs]
        found[path] = tuple(
            Piece(f"{name}.weight", shape, layout.transposed, order=order)
            for name, shape in zip(names, shapes)
        )

    def vector(
        path: str, sizes: tuple[int, ...], names: tuple[str, ...], suffix: str = "bias", order=None
    ) -> None:
        found[path] = tuple(
            Piece(f"{name}.{suffix}", (size,), order=order) for name, size in zip(names, sizes)
        )

    def norm(path: str, name: str, size: int) -> None:
        vector(f"{path}.scale", (size,), (name,), "weight")
        if c.norm == "layer":
            vector(f"{path}.bias", (size,), (name,))

    base, table = layout.base, c.table_width
    found["embedding"] = (Piece(f"{base}{layout.embedding}.weight", (c.vocab_size, table)),)
    if c.positions == "learned":
        rows = c.max_positions + layout.first_position
        found["positions"] = (
            Piece(f"{base}{layout.positions}.weight", (rows, c.width), skip=layout.first_position),
        )
    if c.embedding_width:
        matrix("project_in", table, (c.width,), (base + layout.project_in,))
        matrix("project_out", c.width, (table,), (base + layout.project_out,))
    if c.final_norm:
        norm("final_norm", base + layout.final_norm, c.width)
    if not c.tie_embeddings:
        found["head"] = (Piece(f"{layout.head}.weight", (c.vocab_size, table), transposed=True),)
    query, kv = c.heads * c.head_dim, c.kv_heads * c.head_dim
    sizes: tuple[int, ...] = (query, kv, kv)
    order = None
    if len(layout.qkv) == 1:
        sizes = (query + 2 * kv,)
        if layout.by_head:
            # Published as heads × (query, key, value) × head size; ours as (query, key, value) ×
            # heads × head size.
            order = np.arange(sizes[0]).reshape(3, c.heads, c.head_dim).transpose(1, 0, 2).ravel()
    inner = (c.hidden,) * len(layout.gate_up)
    for i in range(c.layers):
        ours, theirs = f"blocks.{i}", base + layout.block.format(i)

        def named(names: tuple[str, ...], theirs: str = theirs) -> tuple[str, ...]:
            return tuple(theirs + name for name in names)

        norm(f"{ours}.attention_norm", theirs + layout.attention_norm, c.width)
        norm(f"{ours}.mlp_norm", theirs + layout.mlp_norm, c.width)
        matrix(f"{ours}.attention.qkv", c.width, sizes, named(layout.qkv), order)
        matrix(f"{ours}.attention.out", query, (c.width,), named((layout.out,)))
        matrix(f"{ours}.mlp.gate_up", c.width, inner, named(layout.gate_up))
        matrix(f"{ours}.mlp.down", c.hidden, (c.width,), named((layout.down,)))
        if c.qkv_bias:
            vector(f"{ours}.attention.qkv_bias", sizes, named(layout.qkv), order=order)
        if c.out_bias:
            vector(f"{ours}.attention.out_bias", (c.width,), named((layout.out,)))
        if c.mlp_bias:
            vector(f"{ours}.mlp.gate_up_bias", inner, named(layout.gate_up))
            vector(f"{ours}.mlp.down_bias", (c.width,), named((layout.down,)))
        if c.qk_norm:
            vector(
                f"{ours}.attention.query_norm.scale",
                (c.head_dim,),
                named((layout.query_norm,)),
                "weight",
            )
            vector(
                f"{ours}.attention.key_norm.scale",
                (c.head_dim,),
                named((layout.key_norm,)),
                "weight",
            )
    return found
