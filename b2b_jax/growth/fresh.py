"""Fresh parameters from the axis table alone: what DirectCopy and random growth fill in."""

import zlib
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from b2b_jax.axes import Axes, AxisTable
from b2b_jax.tree import unflatten
from b2b_jax.types import Params, PRNGKey


def fresh_params(table: AxisTable, shapes: Mapping[str, tuple[int, ...]], *, seed: int) -> Params:
    """All parameters, as random growth and DirectCopy with this seed draw them.

    Args:
        table: parameter path -> named axes.
        shapes: parameter path -> shape.
        seed: of all draws.
    """
    key = jax.random.key(seed)
    return unflatten(
        {path: fresh_leaf(path, table[path], shape, key=key) for path, shape in shapes.items()}
    )


def fresh_leaf(
    path: str, axes: Axes, shape: tuple[int, ...], *, key: PRNGKey
) -> Float[Array, "..."]:
    """Draw one parameter as a fresh model would have it, float32.

    Kernels and embeddings are normal, truncated at two deviations; norm scales are one, everything
    else zero. The draw depends on the key, the path and the layer only, so that a parameter can be
    made without any other, and a layer without the other layers.
    """
    if axes.indexed[:1] != ("layers",):
        return fresh_piece(path, axes, shape, key=key)
    draw = jax.vmap(lambda i: fresh_piece(path, axes, shape[1:], key=key, layer=i))
    return draw(jnp.arange(shape[0]))


def fresh_piece(
    path: str, axes: Axes, shape: tuple[int, ...], *, key: PRNGKey, layer: Any = None
) -> Float[Array, "..."]:
    """Draw one parameter, or one layer of a stacked one, as `fresh_leaf` does.

    Args:
        path: its path.
        axes: its named axes.
        shape: of what is drawn, so without the layers for one layer.
        key: the same for all parameters.
        layer: which layer of a stacked parameter, an integer or a traced one.
    """
    if axes.role == "norm_scale":
        return jnp.ones(shape, jnp.float32)
    if axes.role in ("bias", "norm_bias"):
        return jnp.zeros(shape, jnp.float32)
    key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    if layer is not None:
        key = jax.random.fold_in(key, layer)
    return axes.init_std * jax.random.truncated_normal(key, -2.0, 2.0, shape, jnp.float32)
