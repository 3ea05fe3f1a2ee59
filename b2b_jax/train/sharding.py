"""From named axes to a device mesh: where every parameter and every batch lives."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from b2b_jax.axes import AxisTable
from b2b_jax.train.live import map_mirrors
from b2b_jax.tree import flatten, map_with_path

RULES: Mapping[str, str] = {"embed": "fsdp"}
"""Parameter axis -> mesh axis. Axes that are not named are on every device."""
BATCH_AXES = ("data", "fsdp")


class ShardingError(ValueError):
    """Sizes that a mesh cannot divide."""


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh; -1 means the devices that remain."""

    data: int = -1
    """Copies of the parameters, each with its share of the batch."""
    fsdp: int = 1
    """Devices that share one copy of the parameters; they also share the batch."""


def make_mesh(config: MeshConfig) -> Mesh:
    """Lay all devices out as (data, fsdp).

    Raises:
        ShardingError: if the sizes do not multiply to the number of devices.
    """
    sizes = [config.data, config.fsdp]
    devices = jax.device_count()
    known = int(np.prod([size for size in sizes if size != -1]))
    if sizes.count(-1) > 1 or known < 1 or devices % known:
        raise ShardingError(
            f"mesh data={config.data}, fsdp={config.fsdp} does not fit {devices} devices; "
            "at most one may be -1 and the others must divide the number of devices"
        )
    shape = tuple(devices // known if size == -1 else size for size in sizes)
    if int(np.prod(shape)) != devices:
        raise ShardingError(
            f"mesh data={config.data}, fsdp={config.fsdp} uses {int(np.prod(shape))} of {devices} "
            "devices; set one of them to -1"
        )
    # Explicit axes, the default, fail inside Flax Linen's lookups.
    return jax.make_mesh(shape, BATCH_AXES, axis_types=(AxisType.Auto,) * 2)


def param_shardings(
    table: AxisTable, shapes: Mapping[str, tuple[int, ...]], *, mesh: Mesh | AbstractMesh
) -> dict[str, NamedSharding]:
    """Parameter path -> sharding, by the names of its axes.

    Raises:
        ShardingError: lists every parameter whose axis the mesh does not divide.
    """
    shardings, uneven = {}, []
    for path, axes in table.items():
        spec: list[str | None] = []
        for name, size in zip(axes.names, shapes[path], strict=True):
            mesh_axis = RULES.get(name)
            if mesh_axis in spec:  # a mesh axis can shard one dimension of an array only
                mesh_axis = None
            if mesh_axis and size % mesh.shape[mesh_axis]:
                uneven.append(
                    f"{path}: {name} {size} is not divisible by {mesh_axis} {mesh.shape[mesh_axis]}"
                )
            spec.append(mesh_axis)
        shardings[path] = NamedSharding(mesh, PartitionSpec(*spec))
    if uneven:
        raise ShardingError("The mesh does not divide these parameters:\n  " + "\n  ".join(uneven))
    return shardings


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sequences are split over all devices."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    """A copy on every device."""
    return NamedSharding(mesh, PartitionSpec())


def optimizer_shardings(
    opt_state: Any, params: Mapping[str, Any], shardings: Mapping[str, Any], *, mesh: Mesh
) -> Any:
    """Shardings of an optax state: moments lie with their parameters, counts on every device.

    Args:
        opt_state: the state, or its `jax.eval_shape`.
        params: the parameters, or their shapes.
        shardings: nested dict of the parameters' shardings.
        mesh: the device mesh.
    """
    by_path, flat_shapes = flatten(shardings), flatten(params)

    def leaf_sharding(path: str, leaf: Any) -> NamedSharding:
        same = tuple(leaf.shape) == tuple(flat_shapes[path].shape)
        return by_path[path] if same else replicated(mesh)

    return map_mirrors(
        lambda node: map_with_path(leaf_sharding, node),
        opt_state,
        params,
        otherwise=lambda _: replicated(mesh),
    )
