"""A model on a mesh: where its activations lie, and which attention kernel its devices run."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array

from b2b_jax.models import Model, Place, Spread, alone, resolve_attention
from b2b_jax.train.sharding import BATCH_AXES

ACTIVATION_RULES: Mapping[str, str | tuple[str, ...]] = {
    "batch": BATCH_AXES,
    "heads": "tensor",
    "mlp": "tensor",
    "vocab": "tensor",
}
"""Activation axis -> mesh axes."""


def on_mesh(model: Model, mesh: Mesh, *, tokens: int) -> Model:
    """The same model, computed on a mesh.

    Args:
        model: from `build_model`.
        mesh: of devices that need not be here.
        tokens: per sequence.

    Raises:
        ConfigError: if the devices cannot run the attention kernel that is asked for.
    """
    compute = model.compute
    kernel = resolve_attention(
        compute.attention,
        model.cfg,
        dtype=compute.dtype,
        tokens=tokens,
        device=mesh.devices.flat[0],
    )
    return dataclasses.replace(
        model,
        compute=dataclasses.replace(compute, attention=kernel),
        place=activation_place(mesh),
        spread=activation_spread(mesh),
    )


def activation_place(mesh: Mesh) -> Place:
    """Hold activations of a model in their shards, by the names of their axes."""

    def place(x: Array, axes: tuple[str | None, ...]) -> Array:
        return jax.lax.with_sharding_constraint(x, NamedSharding(mesh, _spec(axes)))

    return place


def activation_spread(mesh: Mesh) -> Spread:
    """Let every device of a mesh run functions of a model on its own shards."""

    def spread(function: Callable[..., Array], axes: Any, result: Any) -> Callable[..., Array]:
        return jax.shard_map(
            function,
            mesh=mesh,
            in_specs=tuple(map(_spec, axes)),
            out_specs=_spec(result),
            # Kernels do not say over which mesh axes their results vary.
            check_vma=False,
        )

    return alone if mesh.size == 1 else spread


def _spec(axes: tuple[str | None, ...]) -> PartitionSpec:
    return PartitionSpec(*(None if name is None else ACTIVATION_RULES.get(name) for name in axes))
