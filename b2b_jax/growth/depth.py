"""Layer orders: which widened source layer every target layer copies (bert2BERT, Algorithm 1)."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from b2b_jax.growth.errors import GrowthError
from b2b_jax.growth.maps import IndexMap

NamedDepth = Literal["stack", "interpolate", "middle", "identity"]
Depth = NamedDepth | Sequence[int]
"""A way to order layers, or for every target layer the source layer that it copies."""


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


def middle(source: int, target: int) -> IndexMap:
    """The middle layers once more, right above themselves: the ends read and write the embeddings.

    Example:
        >>> middle(6, 8).indices.tolist()
        [0, 1, 2, 3, 2, 3, 4, 5]
    """
    if target > 2 * source:  # doubled first, so that whole blocks follow each other
        doubled = middle(source, 2 * source).indices
        return IndexMap(doubled[middle(2 * source, target).indices], source)
    block = target - source
    start = (source - block) // 2
    return IndexMap(np.concatenate([np.arange(start + block), np.arange(start, source)]), source)


ORDERS: dict[NamedDepth, Callable[[int, int], IndexMap]] = {
    "stack": stack,
    "interpolate": interpolate,
    "middle": middle,
    "identity": interpolate,
}


def layer_order(depth: Depth, source: int, target: int) -> IndexMap:
    """The order that a name or an explicit list stands for.

    Raises:
        GrowthError: if a list does not have one valid source layer for every target layer.
    """
    if isinstance(depth, str):
        return ORDERS[depth](source, target)  # pyright: ignore[reportArgumentType]
    if not all(isinstance(layer, int | np.integer) for layer in depth):
        raise GrowthError(f"depth: found the layers {list(depth)}, expected whole numbers")
    wrong = [layer for layer in depth if not 0 <= layer < source]
    if len(depth) != target or wrong:
        raise GrowthError(
            f"depth: found the layers {list(depth)}, expected {target} of 0 to {source - 1}"
        )
    return IndexMap(np.array(depth, np.int32), source)


def silent_layers(order: IndexMap) -> np.ndarray:
    """Target layers that repeat a source layer already seen: those that ``identity`` silences.

    Returns:
        bool ``[target]``.
    """
    _, first = np.unique(order.indices, return_index=True)
    return ~np.isin(np.arange(order.target_size), first)
