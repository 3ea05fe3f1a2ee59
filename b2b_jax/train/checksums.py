"""Checksums of arrays that no sharding changes, so that a damaged checkpoint is noticed."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, UInt32

Checksums = dict[str, list[int]]
LANES = (0x9E3779B1, 0x7FEB352D)
"""Two sums with other multipliers, 64 bits together."""


def checksum(leaf: Array) -> UInt32[Array, "2"]:
    """A sum over all entries of a scramble of their bits and their place.

    Integer addition is exact and in any order the same, so the devices can add their shards where
    they lie, and a mesh of any shape finds the same. Any change of one entry changes both sums.

    Args:
        leaf: an array of any shape, of entries of 1, 2, 4 or 8 bytes.

    Example:
        >>> a = jnp.arange(6.0).reshape(2, 3)
        >>> b = a.at[1, 2].set(5.0000005)
        >>> bool((checksum(a) == checksum(a + 0)).all()), bool((checksum(a) != checksum(b)).all())
        (True, True)
    """
    bits = _bits(leaf)
    sums = []
    for lane in LANES:
        place = jnp.full(bits.shape, lane, jnp.uint32)
        for axis in range(bits.ndim):
            coordinate = jax.lax.broadcasted_iota(jnp.uint32, bits.shape, axis)
            place = _scramble(place + coordinate * jnp.uint32(lane))
        sums.append(jnp.sum(_scramble(bits ^ place), dtype=jnp.uint32))
    return jnp.stack(sums)


def _bits(leaf: Array) -> UInt32[Array, "..."]:
    if leaf.dtype == jnp.bool_:
        return leaf.astype(jnp.uint32)
    size = leaf.dtype.itemsize
    unsigned = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{8 * min(size, 4)}"))
    return unsigned.astype(jnp.uint32)  # entries of 8 bytes have become pairs


def _scramble(x: UInt32[Array, "..."]) -> UInt32[Array, "..."]:
    """A bijection of 32-bit words whose every output bit depends on every input bit."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x21F0AAAD)
    x = (x ^ (x >> 15)) * jnp.uint32(0x735A2D97)
    return x ^ (x >> 15)


_checksums = jax.jit(lambda leaves: {name: checksum(leaf) for name, leaf in leaves.items()})


def tree_checksums(tree: Any) -> Checksums:
    """Checksum of every leaf of a tree of arrays on devices, by its path.

    Args:
        tree: any tree; its leaves are named as `jax.tree_util.keystr` does.
    """
    leaves = dict(zip(leaf_names(tree), jax.tree.leaves(tree), strict=True))
    return {name: np.asarray(sums).tolist() for name, sums in _checksums(leaves).items()}


def leaf_names(tree: Any) -> list[str]:
    """What checksums call the leaves of a tree, in its order.

    Example:
        >>> leaf_names({"a": {"b": 1, "c": 2}})
        ["['a']['b']", "['a']['c']"]
    """
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(tree)]


def damaged(tree: Any, expected: Mapping[str, list[int]] | None) -> list[str]:
    """Names of the leaves whose checksum is not what it was, or was never known.

    Args:
        tree: any tree of arrays on devices.
        expected: what `tree_checksums` gave; None if nothing was kept, so that nothing is judged.
    """
    if expected is None:
        return []
    return [name for name, sums in tree_checksums(tree).items() if sums != expected.get(name)]
