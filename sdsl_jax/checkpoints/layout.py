"""How the state and batches of a rung are laid out over devices.

Batches are split over every device of the mesh. Parameters and optimiser moments are split over its
axis `fsdp` and repeated over `data` (ZeRO, 1910.02054). The compiler is told where a state and a
batch are before a step, and that the state must be in the same place after it. It follows that
weights are gathered where a layer needs them, and that each device keeps its own part of every
gradient.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import (
    AxisType,
    Mesh,
    NamedSharding,
    PartitionSpec,
    Sharding,
    SingleDeviceSharding,
)

from sdsl_jax.checkpoints import storage
from sdsl_jax.config import ParallelConfig
from sdsl_jax.errors import require
from sdsl_jax.processes import any_process, broadcast_from_primary

_AXES = ("data", "fsdp")

# Arrays of fewer elements are repeated on every device. To gather one costs a latency that does not
# shrink with its size, whereas keeping it costs at most 0.75 MB with its moments: models of such
# matrices have no more than a few million parameters.
_SMALL = 2**16


@dataclass(frozen=True)
class Layout:
    """Where the state and the batches of a rung are; made by `make_layout`.

    With one device nothing is wrapped and nothing is moved: programs and bits are those of a plain
    call.

    Attributes:
      mesh: Mesh with the axes `data` and `fsdp`.
    """

    mesh: Mesh

    def check_batch(self, rows: int) -> None:
        """Checks that every device gets the same number of rows.

        Raises:
          SdslError: The rows cannot be split evenly.
        """
        data, fsdp = self.mesh.shape["data"], self.mesh.shape["fsdp"]
        require(
            rows % self.mesh.size == 0,
            f"the batch has {rows} rows, which cannot be split evenly over {self.mesh.size} devices (parallel.data = {data}, "
            f"parallel.fsdp = {fsdp}); it must be a multiple of {self.mesh.size}.",
        )

    def state_shardings(self, state: Any) -> Any:
        """The sharding of every array of a state, or of a part of one.

        Arrays with two or more axes and at least 65,536 elements are split along the first axis
        that `fsdp` divides; the others are repeated. The first axis is preferred because the
        columns of a matrix may be several matrices side by side, which the model cuts apart.

        Args:
          state: Pytree of arrays or of their shapes.

        Raises:
          SdslError: `fsdp` divides no axis of a large array, which every device would then hold
            whole.
        """
        return jax.tree_util.tree_map_with_path(
            lambda path, x: self._sharding(jax.tree_util.keystr(path), x.shape), state
        )

    def abstract(self, state: Any) -> Any:
        """Shapes, types and shardings of a state, as `storage.restore` expects them, whatever mesh
        it was saved on.
        """
        return jax.tree.map(
            lambda x, sharding: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding),
            state,
            self.state_shardings(state),
        )

    def place(self, state: Any) -> Any:
        """Puts a state where steps run. With several processes, each must pass the whole state.

        Raises:
          SdslError: The processes pass different states.
        """
        shardings = self.state_shardings(state)
        if jax.process_count() == 1:
            return jax.device_put(state, shardings)
        mark = int(storage.digest(state)[:7], 16)
        require(
            not any_process(mark != broadcast_from_primary(mark)),
            "the processes computed different initial states; they must run on hardware of one kind.",
        )
        return jax.tree.map(
            lambda x, sharding: _from_host(np.asarray(x), sharding), state, shardings
        )

    def place_batch(self, batch: Any) -> Any:
        """Puts a batch where steps run. With several processes, each passes the whole batch and
        uses its own rows.

        Args:
          batch: An array, or a pytree of them, whose first axes are the rows.

        Raises:
          SdslError: The rows cannot be split evenly.
        """
        self.check_batch(len(jax.tree.leaves(batch)[0]))
        if self._alone:
            return jax.device_put(batch, self._device)
        split = NamedSharding(self.mesh, PartitionSpec(_AXES))
        return jax.tree.map(lambda x: _from_host(x, split), batch)

    def step(self, function: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
        """`train_step`, or a function with its signature, that leaves the state where it was.

        Equal layouts, models and recipes share one compilation.
        """
        return (
            function
            if self._alone
            else functools.partial(_step_in_place, layout=self, function=function)
        )

    def whole(self, tree: Any) -> Any:
        """A copy of a placed pytree on one device of each process, to evaluate or digest it there.

        All processes must call it, and the device must have room for the copy: pass parameters, not
        the state.
        """
        if self._alone:
            return tree
        repeated = jax.jit(_same, out_shardings=NamedSharding(self.mesh, PartitionSpec()))(tree)
        return jax.tree.map(lambda x: x.addressable_data(0), repeated)

    @property
    def _alone(self) -> bool:
        return self.mesh.size == 1

    @property
    def _device(self) -> jax.Device:
        return self.mesh.devices.flat[0]

    def _sharding(self, name: str, shape: tuple[int, ...]) -> Sharding:
        if self._alone:
            return SingleDeviceSharding(self._device)
        fsdp = self.mesh.shape["fsdp"]
        if fsdp == 1 or len(shape) < 2 or math.prod(shape) < _SMALL:
            return NamedSharding(self.mesh, PartitionSpec())
        axis = next((axis for axis, size in enumerate(shape) if size % fsdp == 0), None)
        require(
            axis is not None,
            f"parallel.fsdp is {fsdp}, which divides no axis of {name} {list(shape)}; it must divide one of every large array.",
        )
        return NamedSharding(self.mesh, PartitionSpec(*[None] * (axis or 0), "fsdp"))


def _same(tree: Any) -> Any:
    return tree


def _from_host(array: np.ndarray, sharding: Sharding) -> jax.Array:
    """An array that every process has whole, of which each puts its part on its own devices."""
    return jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])


@functools.partial(
    jax.jit, static_argnames=("layout", "function", "model", "config"), donate_argnames="state"
)
def _step_in_place(
    state, tokens, learning_rate, tables=None, *, layout: Layout, function, model, config
):
    state, metrics = function(state, tokens, learning_rate, tables, model=model, config=config)
    return jax.lax.with_sharding_constraint(state, layout.state_shardings(state)), metrics


def make_layout(config: ParallelConfig, devices: Sequence[jax.Device] | None = None) -> Layout:
    """The layout that a study's `[parallel]` asks for.

    Args:
      config: Number of devices along each axis; 0 means all devices that the other axis leaves.
      devices: Devices to use; those of all processes if omitted. A single process takes the first
        `data * fsdp` of them.

    Raises:
      SdslError: There are not that many devices, or some devices of a process would have no work.
    """
    devices = list(jax.devices() if devices is None else devices)
    there = f"{len(devices)} {devices[0].device_kind} device{'s' * (len(devices) > 1)}"
    data, fsdp = config.data, config.fsdp
    if 0 in (data, fsdp):
        other = data + fsdp
        free, fixed = ("data", "fsdp") if data == 0 else ("fsdp", "data")
        require(
            len(devices) % other == 0,
            f"parallel.{free} is 0, for all devices that parallel.{fixed} = {other} leaves, but {other} does not divide the "
            f"{there} there are.",
        )
        data, fsdp = data or len(devices) // other, fsdp or len(devices) // other
    needed = f"parallel.data = {data} and parallel.fsdp = {fsdp} need {data * fsdp} devices"
    require(
        data * fsdp <= len(devices),
        f"{needed}, and there {'is' if len(devices) == 1 else 'are'} {there}.",
    )
    processes = len({device.process_index for device in devices})
    require(
        processes == 1 or data * fsdp == len(devices),
        f"{needed}, and {processes} processes bring {there}; all must be used: set one of the two to 0.",
    )
    # Axes of the type that make_mesh would choose by itself break the embedding's gather.
    auto = (AxisType.Auto,) * len(_AXES)
    return Layout(
        jax.make_mesh((data, fsdp), _AXES, axis_types=auto, devices=devices[: data * fsdp])
    )
