"""From named axes to a device mesh: where parameters, moments, activations and batches live."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AbstractMesh, AxisType, Mesh, NamedSharding, PartitionSpec

from b2b_jax.axes import Axes, AxisTable
from b2b_jax.train.live import map_mirrors
from b2b_jax.tree import flatten, map_with_path

MESH_AXES = ("data", "fsdp", "tensor")
BATCH_AXES = ("data", "fsdp")
PARAM_RULES: Mapping[str, str] = {
    "embed": "fsdp",
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}
"""Parameter axis -> mesh axis. Axes that are not named are on every device."""
VECTORS = ("bias", "norm_scale", "norm_bias")
"""Roles that fsdp leaves whole: each would cost a message per layer, and saves next to nothing."""

AnyMesh = Mesh | AbstractMesh
MeshPreset = Literal["dp", "fsdp", "fsdp_tp"]
PRESETS: Mapping[MeshPreset, tuple[int, int, int]] = {
    "dp": (-1, 1, 1),
    "fsdp": (1, -1, 1),
    "fsdp_tp": (1, -1, 4),
}


class ShardingError(ValueError):
    """Sizes that a mesh cannot divide."""


@dataclass(frozen=True)
class MeshConfig:
    """Sizes of the device mesh: -1 means the devices that remain, 0 what the preset says."""

    preset: MeshPreset = "dp"
    """dp: every device has all parameters. fsdp: all devices share them. fsdp_tp: groups of four
    devices split every layer's matrix products, and these groups share the parameters."""
    data: int = 0
    """Copies of the parameters, each with its share of the batch."""
    fsdp: int = 0
    """Parts that parameters and moments are cut into along the residual stream; each part has its
    share of the batch as well."""
    tensor: int = 0
    """Devices that split heads, neurons and vocabulary between them, on the same sequences."""

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Sizes of `MESH_AXES`, where one may still be -1."""
        own = (self.data, self.fsdp, self.tensor)
        data, fsdp, tensor = (
            size or preset for size, preset in zip(own, PRESETS[self.preset], strict=True)
        )
        return data, fsdp, tensor

    def problems(self) -> list[str]:
        """Every size that no number of devices fits."""
        found = [
            f"mesh.{name}: found {size}, expected a number of devices, -1 (the rest) or 0 (as the "
            "preset has it)"
            for name, size in zip(MESH_AXES, (self.data, self.fsdp, self.tensor), strict=True)
            if size < -1
        ]
        if self.sizes.count(-1) > 1:
            found.append(
                f"mesh: found {_words(self.sizes)} (what is not set is of preset {self.preset}), "
                "expected -1 at most once"
            )
        return found


def _words(sizes: Sequence[int]) -> str:
    return ", ".join(f"{name}={size}" for name, size in zip(MESH_AXES, sizes, strict=True))


def mesh_shape(config: MeshConfig, devices: int) -> tuple[int, int, int]:
    """Sizes of `MESH_AXES` on so many devices.

    Raises:
        ShardingError: if they do not multiply to the number of devices.

    Example:
        >>> mesh_shape(MeshConfig(preset="fsdp_tp"), 16)
        (1, 4, 4)
    """
    if found := config.problems():
        raise ShardingError("; ".join(found))
    known = math.prod(size for size in config.sizes if size != -1)
    data, fsdp, tensor = (devices // known if size == -1 else size for size in config.sizes)
    if data * fsdp * tensor != devices:
        most = math.gcd(max(config.sizes[2], 1), devices)
        fits = [(1, devices // tensor, tensor) for tensor in sorted({most, 1}, reverse=True)]
        raise ShardingError(
            f"mesh {_words(config.sizes)} does not fit {devices} devices: the sizes must multiply "
            f"to {devices}, and one of them may be -1 for the rest, as in "
            f"{' or '.join(map(_words, fits))} (what is not set is of preset {config.preset})"
        )
    return data, fsdp, tensor


def make_mesh(config: MeshConfig, *, devices: Sequence[Any] | None = None) -> Mesh:
    """Lay devices out as (data, fsdp, tensor).

    Args:
        config: sizes.
        devices: those to use; all by default.

    Raises:
        ShardingError: if the sizes do not multiply to the number of devices, or the devices cannot
            be laid out so.
    """
    devices = jax.devices() if devices is None else devices
    shape = mesh_shape(config, len(devices))
    slices = _slices(devices)
    if shape[0] % slices:
        raise ShardingError(
            f"mesh {_words(shape)}: found data {shape[0]} for {slices} slices of TPUs, between "
            "which only the mean of gradients may go, since their network is slow; set mesh.data "
            f"to a multiple of {slices}"
        )
    within = (shape[0] // slices, *shape[1:])
    how: Any = {"devices": devices, "allow_split_physical_axes": True}
    try:
        # Neighbours in the mesh are neighbours in the machine as far as that goes.
        if slices == 1:
            laid_out = mesh_utils.create_device_mesh(shape, **how)
        else:
            laid_out = mesh_utils.create_hybrid_device_mesh(within, (slices, 1, 1), **how)
    except (AssertionError, NotImplementedError, ValueError) as error:
        raise ShardingError(f"mesh {_words(shape)}: {error}") from error
    # Explicit axes, the default, fail inside Flax Linen's lookups.
    return Mesh(laid_out, MESH_AXES, axis_types=(AxisType.Auto,) * len(MESH_AXES))


def _slices(devices: Sequence[Any]) -> int:
    """How many slices TPUs come from; GPUs count hosts so, whose network is no slower for it."""
    if devices[0].platform != "tpu":
        return 1
    return len({getattr(device, "slice_index", 0) for device in devices})


def param_shardings(
    table: AxisTable, shapes: Mapping[str, tuple[int, ...]], *, mesh: AnyMesh
) -> dict[str, NamedSharding]:
    """Parameter path -> sharding, by the names of its axes.

    Raises:
        ShardingError: lists every parameter whose axis the mesh does not divide, and the mesh
            sizes that would.
    """
    shardings, uneven = {}, []
    for path, axes in table.items():
        spec = param_spec(axes)
        shardings[path] = NamedSharding(mesh, spec)
        for name, size, mesh_axis in zip(axes.names, shapes[path], spec, strict=True):
            if mesh_axis and size % mesh.shape[mesh_axis]:
                parts = mesh.shape[mesh_axis]
                uneven.append(f"{path}: {name} {size} is not divisible by {mesh_axis} {parts}")
    if uneven:
        raise ShardingError(
            "The mesh does not divide these parameters:\n  "
            + "\n  ".join(uneven)
            + f"\n{_advice(table, shapes, mesh)}"
        )
    return shardings


def fitting_shardings(
    table: AxisTable, shapes: Mapping[str, tuple[int, ...]], *, mesh: AnyMesh
) -> dict[str, NamedSharding]:
    """Like `param_shardings`, but what the mesh does not divide is on every device."""
    found = {}
    for path, axes in table.items():
        spec = (
            name if name and size % mesh.shape[name] == 0 else None
            for size, name in zip(shapes[path], param_spec(axes), strict=True)
        )
        found[path] = NamedSharding(mesh, PartitionSpec(*spec))
    return found


def param_spec(axes: Axes) -> PartitionSpec:
    """The mesh axis of every dimension of a parameter, None where it is whole.

    Example:
        >>> tuple(param_spec(Axes.parse("kernel: layers | embed -> heads, head_dim")))
        (None, 'fsdp', 'tensor', None)
    """
    spec: list[str | None] = []
    for name in axes.names:
        mesh_axis = PARAM_RULES.get(name)
        whole = mesh_axis == "fsdp" and axes.role in VECTORS
        # A mesh axis can shard one dimension of an array only.
        spec.append(None if whole or mesh_axis in spec else mesh_axis)
    return PartitionSpec(*spec)


def _advice(table: AxisTable, shapes: Mapping[str, tuple[int, ...]], mesh: AnyMesh) -> str:
    """Mesh shapes for the same number of devices that divide every parameter."""
    common = dict.fromkeys(MESH_AXES, 0)
    for path, axes in table.items():
        for size, mesh_axis in zip(shapes[path], param_spec(axes), strict=True):
            if mesh_axis:
                common[mesh_axis] = math.gcd(common[mesh_axis], size)
    devices = mesh.size
    fitting = [
        (devices // (fsdp * tensor), fsdp, tensor)
        for tensor in _divisors(math.gcd(common["tensor"], devices))
        for fsdp in _divisors(math.gcd(common["fsdp"], devices // tensor))
    ]
    wanted = [mesh.shape[name] for name in MESH_AXES]
    fitting.sort(key=lambda sizes: _distance(sizes, wanted))
    told = "; ".join(_words(sizes) for sizes in fitting[:3])
    padded = ""
    tensor = mesh.shape["tensor"]
    vocab = {
        size
        for path, axes in table.items()
        for name, size in zip(axes.names, shapes[path], strict=True)
        if name == "vocab" and size % tensor
    }
    for size in sorted(vocab):
        padded = f". Or set model.vocab_size to {-(-size // tensor) * tensor}: {size} and unused"
    return f"Of {devices} devices these meshes do: {told}{padded}"


def _divisors(number: int) -> list[int]:
    return [part for part in range(1, number + 1) if number % part == 0]


def _distance(sizes: Sequence[int], wanted: Sequence[int]) -> float:
    return sum(abs(math.log(a / b)) for a, b in zip(sizes, wanted, strict=True))


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Sequences are split over data and fsdp; devices along tensor have the same ones."""
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def check_batch(mesh: Mesh, batch_size: int, *, parts: int) -> None:
    """Make sure that the devices share every part of a batch evenly.

    Raises:
        ShardingError: if they do not.
    """
    shares = math.prod(mesh.shape[name] for name in BATCH_AXES)
    if batch_size % (shares * parts):
        raise ShardingError(
            f"train.batch_size / train.micro_batches is {batch_size / parts:g}, which the {shares} "
            "parts of the mesh (data x fsdp) cannot share evenly; set a batch of a multiple of "
            f"{shares * parts}"
        )


def local_rows(mesh: Mesh, batch_size: int) -> np.ndarray:
    """Which rows of a batch the devices of this process need, ascending."""
    where: Any = batch_sharding(mesh).addressable_devices_indices_map((batch_size,))
    needed = {row for (rows,) in where.values() for row in range(*rows.indices(batch_size))}
    return np.asarray(sorted(needed))


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
