"""Fresh parameters from the axis table alone: what DirectCopy and random growth fill in."""

import zlib

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from b2b_jax.axes import Axes
from b2b_jax.types import PRNGKey


def fresh_leaf(
    path: str, axes: Axes, shape: tuple[int, ...], *, key: PRNGKey
) -> Float[Array, "..."]:
    """Draw one parameter as a fresh model would have it, float32.

    Kernels and embeddings are normal, truncated at two deviations; norm scales are one, everything
    else zero. The draw depends on the key and the path only, not on the other parameters.
    """
    if axes.role == "norm_scale":
        return jnp.ones(shape, jnp.float32)
    if axes.role in ("bias", "norm_bias"):
        return jnp.zeros(shape, jnp.float32)
    leaf_key = jax.random.fold_in(key, zlib.crc32(path.encode()))
    return axes.init_std * jax.random.truncated_normal(leaf_key, -2.0, 2.0, shape, jnp.float32)
