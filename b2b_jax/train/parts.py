"""Rows of a batch in equal parts that are taken one after the other."""

from typing import Any

import jax
import jax.numpy as jnp


def in_parts(rows: Any, number: int) -> Any:
    """Every array cut into parts of its rows, which are its new first axis.

    Strided, so that every device finds its share of each part among its own rows.

    Args:
        rows: tree of arrays with as many rows.
        number: of parts; divides the rows of a device.

    Example:
        >>> import jax.numpy as jnp
        >>> in_parts(jnp.arange(6), 2).tolist()
        [[0, 2, 4], [1, 3, 5]]
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x.reshape(-1, number, *x.shape[1:]), 1, 0), rows)


def joined(parts: Any) -> Any:
    """The rows that `in_parts` has cut, in their order.

    Args:
        parts: tree of arrays whose first axis is the parts'.

    Example:
        >>> import jax.numpy as jnp
        >>> joined(in_parts(jnp.arange(6), 2)).tolist()
        [0, 1, 2, 3, 4, 5]
    """
    return jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1).reshape(-1, *x.shape[2:]), parts)
