"""Layer orders: which widened source layer every target layer copies (bert2BERT, Algorithm 1)."""

from collections.abc import Callable
from typing import Literal

import numpy as np

from b2b_jax.growth.maps import IndexMap

Depth = Literal["stack", "interpolate", "identity"]


def stack(source: int, target: int) -> IndexMap:
    """Algorithm 1: whole copies on top of each other, then the *top* layers as the remainder.

    Example:
        >>> stack(3, 8).indices.tolist()
        [0, 1, 2, 0, 1, 2, 1, 2]
    """
    whole, remainder = divmod(target, source)
    return IndexMap(
        np.concatenate([np.tile(np.arange(source), whole), np.arange(source - remainder, source)]),
        source,
    )


def interpolate(source: int, target: int) -> IndexMap:
    """Every layer followed by its own copies, as evenly spread as the numbers allow.

    Example:
        >>> interpolate(3, 6).indices.tolist()
        [0, 0, 1, 1, 2, 2]
    """
    return IndexMap(np.arange(target) * source // target, source)


ORDERS: dict[Depth, Callable[[int, int], IndexMap]] = {
    "stack": stack,
    "interpolate": interpolate,
    "identity": interpolate,
}


def silent_layers(order: IndexMap) -> np.ndarray:
    """Target layers that repeat a source layer already seen: those that ``identity`` silences.

    Returns:
        bool ``[target]``.
    """
    _, first = np.unique(order.indices, return_index=True)
    return ~np.isin(np.arange(order.target_size), first)
