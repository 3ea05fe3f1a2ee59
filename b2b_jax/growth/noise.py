"""Noise that parts copies without changing the function: added to one, taken from the other."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from b2b_jax.axes import Axes
from b2b_jax.growth.fresh import fresh_piece
from b2b_jax.growth.maps import IndexMap
from b2b_jax.growth.width import Maps, along, gather
from b2b_jax.types import PRNGKey


def pairs(grown: IndexMap) -> tuple[np.ndarray, np.ndarray]:
    """Copies two by two: the first of each pair, and the sign of each copy, 0 for one left over.

    Example:
        >>> from b2b_jax.growth.mappings import cyclic
        >>> [part.tolist() for part in pairs(cyclic(2, 5))]
        [[0, 1, 0, 1, 4], [1, 1, -1, -1, 0]]
    """
    first, sign = np.arange(grown.target_size), np.zeros(grown.target_size, int)
    for source in np.flatnonzero(grown.counts > 1):
        places = np.flatnonzero(grown.indices == source)
        for one, other in zip(places[::2], places[1::2], strict=False):
            first[other], sign[one], sign[other] = one, 1, -1
    return first, sign


def noisy_axis(axes: Axes, maps: Maps) -> int | None:
    """The dimension of a parameter along which its copies are summed; None if there is none."""
    if axes.role != "kernel":
        return None
    consumed = range(len(axes.indexed), len(axes.indexed) + len(axes.consumes))
    return next((d for d in consumed if (maps[axes.names[d]].counts > 1).any()), None)


def noise_leaf(
    path: str, axes: Axes, shape: tuple[int, ...], *, maps: Maps, scale: float, seed: int
) -> Float[Array, "..."] | None:
    """The noise of a whole parameter, layer by layer as `noise_piece` draws it."""
    if axes.indexed[:1] != ("layers",):
        return noise_piece(path, axes, shape, maps=maps, scale=scale, seed=seed)
    if not scale or noisy_axis(axes, maps) is None:
        return None
    draw = jax.vmap(
        lambda layer: noise_piece(
            path, axes, shape[1:], maps=maps, scale=scale, seed=seed, layer=layer
        )
    )
    return draw(jnp.arange(shape[0]))


def noise_piece(
    path: str,
    axes: Axes,
    shape: tuple[int, ...],
    *,
    maps: Maps,
    scale: float,
    seed: int,
    layer: Any = None,
) -> Float[Array, "..."] | None:
    """What is added to a parameter, or to one layer of a stacked one; None for nothing.

    Along the first consumed axis that has copies, every pair of them gets opposite noise, so that
    the sum over the axis stays.

    Args:
        path: the parameter.
        axes: its named axes.
        shape: of what is drawn, so without the layers for one layer.
        maps: axis name -> index map.
        scale: standard deviation, in units of the parameter's initialisation.
        seed: of the growth.
        layer: which layer of the target.
    """
    dimension = noisy_axis(axes, maps)
    if not scale or dimension is None:
        return None
    first, sign = pairs(maps[axes.names[dimension]])
    dimension -= len(axes.names) - len(shape)
    drawn = fresh_piece(path, axes, shape, key=_key(seed), layer=layer)
    signs = along(sign.astype(np.float32) * np.float32(scale), dimension, len(shape))
    return gather(drawn, first, axis=dimension) * signs  # pyright: ignore[reportReturnType]


def _key(seed: int) -> PRNGKey:
    """Another one than fresh parameters have."""
    return jax.random.fold_in(jax.random.key(seed), 1)
