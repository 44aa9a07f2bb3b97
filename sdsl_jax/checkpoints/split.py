"""How a model that fits no single device is split over several that decode with it (tensor parallelism).

Matrices are split along one axis: those that read the residual stream along it, so that their products
are sums over devices; the two that write it, `out` and `down`, along the heads and the hidden units
that each device then has; tables of tokens along the tokens. Caches follow their heads and rows, and
logits the tokens. XLA inserts the communication.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import jax
from jax.sharding import NamedSharding, PartitionSpec

from sdsl_jax.checkpoints.layout import Layout, make_layout
from sdsl_jax.config import ParallelConfig
from sdsl_jax.counts import short_bytes
from sdsl_jax.errors import require
from sdsl_jax.models import ModelConfig, abstract_params

_AXIS = "fsdp"


def split_shardings(config: ModelConfig, devices: int, repeated: bool = False) -> Any:
    """The sharding of every array of a model's parameters on the first devices.

    Args:
      config: Architecture.
      devices: Number of devices.
      repeated: Whether every device holds the whole model, as a small draft does.

    Raises:
      SdslError: There are fewer devices, or their number divides no axis of a large array.
    """
    available = len(jax.devices())
    require(
        devices <= available,
        f"the weights are to be split over {devices} devices; there {'is' if available == 1 else 'are'} {available}.",
    )
    layout, params = (
        make_layout(ParallelConfig(fsdp=devices), jax.devices()),
        abstract_params(config),
    )
    if repeated:
        whole = NamedSharding(layout.mesh, PartitionSpec())
        return jax.tree.map(lambda _: whole, params)
    return _with_split_logits(layout, params, layout.state_shardings(params))


def _with_split_logits(layout: Layout, params: Any, shardings: Any) -> Any:
    """An untied readout [width, ids] is split by ids, as its logits are."""

    def readout(path: Any, leaf: Any, sharding: Any) -> Any:
        split = layout.mesh.shape[_AXIS]
        of_head = "head" in jax.tree_util.keystr(path)
        if of_head and sharding.spec and leaf.ndim == 2 and leaf.shape[1] % split == 0:
            return NamedSharding(layout.mesh, PartitionSpec(None, _AXIS))
        return sharding

    return jax.tree_util.tree_map_with_path(readout, params, shardings)


class DeviceMemory(NamedTuple):
    """Bytes that one device holds of a model.

    Attributes:
      weights: Of its parameters.
      cache: Of the keys and values of all rows and positions.
      logits: Of one pass, in float32.
    """

    weights: float
    cache: float
    logits: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.weights + self.cache + self.logits

    def __str__(self) -> str:
        parts = f"weights {short_bytes(self.weights)}, cache {short_bytes(self.cache)}"
        return f"{short_bytes(self.total)} ({parts}, logits {short_bytes(self.logits)})"


def device_memory(
    config: ModelConfig,
    devices: int,
    itemsize: int,
    *,
    rows: int,
    positions: int,
    width: int,
    repeated: bool = False,
) -> DeviceMemory:
    """What one of the devices will hold, from the architecture alone.

    Args:
      config: Architecture.
      devices: Devices that share the model.
      itemsize: Bytes of a weight and of a cached number.
      rows: Rows decoded together.
      positions: Positions of a cache.
      width: Tokens of the widest pass.
      repeated: Whether every device holds the whole model.
    """
    shapes = abstract_params(config)
    weights = 0.0
    shardings = split_shardings(config, devices, repeated)
    for leaf, sharding in zip(jax.tree.leaves(shapes), jax.tree.leaves(shardings)):
        weights += itemsize * math.prod(sharding.shard_shape(leaf.shape))
    groups, share = rows * config.kv_heads, 1 if repeated else devices
    splits = share if groups % share == 0 or config.head_dim % share == 0 else 1
    cache = 2 * itemsize * config.layers * groups * config.head_dim * positions / splits
    return DeviceMemory(weights, cache, 4 * rows * width * config.ids / share)


class Sharing(NamedTuple):
    """How a target and its draft share devices, and what they will need on each of them.

    Attributes:
      devices: number of devices
      repeated: whether each of them holds the whole draft
      target: memory of the target on each device
      draft: memory of the draft on each device; None without a draft
    """

    devices: int
    repeated: bool
    target: DeviceMemory
    draft: DeviceMemory | None

    def __str__(self) -> str:
        total = self.target.total + (self.draft.total if self.draft else 0.0)
        lines = (
            f"each of {self.devices} devices will hold {short_bytes(total)}: target {self.target}"
        )
        whole = " whole" if self.repeated else ""
        return lines + (f"; draft{whole} {self.draft}" if self.draft else "")


def share_devices(
    target: ModelConfig,
    draft: ModelConfig | None,
    devices: int,
    itemsize: int,
    *,
    rows: int,
    positions: int,
    width: int,
) -> Sharing:
    """Plans, before anything is read, how a target and its draft share devices.

    Every device holds the whole draft where that takes no more than its share of the target: a small
    draft decodes faster without communication.

    Args:
      target: Architecture of the target.
      draft: Architecture of the draft; None if it has no weights.
      devices: Number of devices.
      itemsize: Bytes of a weight and of a cached number.
      rows: Rows decoded together.
      positions: Positions of a cache.
      width: Tokens of the widest pass, lookahead + 1.

    Raises:
      SdslError: There are fewer devices, or their number divides no axis of a large array.
    """
    sizes: dict[str, Any] = {"rows": rows, "positions": positions, "width": width}
    own = device_memory(target, devices, itemsize, **sizes)
    if draft is None:
        return Sharing(devices, False, own, None)
    whole = device_memory(draft, devices, itemsize, repeated=True, **sizes)
    if whole.weights <= own.weights:
        return Sharing(devices, True, own, whole)
    return Sharing(devices, False, own, device_memory(draft, devices, itemsize, **sizes))


def repeat_over(tree: Any, devices: int) -> Any:
    """The same arrays, whole on each of the first devices."""
    layout = make_layout(ParallelConfig(fsdp=devices), jax.devices())
    return jax.device_put(tree, NamedSharding(layout.mesh, PartitionSpec()))
