"""The trained part of a step: cut it out of parameters and optimizer state, and put it back.

A frozen parameter is not in the cut at all, so that neither gradient, weight decay nor moment decay
can touch it, and no work is spent on it.
"""

from collections.abc import Callable, Mapping
from typing import Any

import jax

from b2b_jax.axes import Axes, AxisTable
from b2b_jax.train.stages import SubModel
from b2b_jax.tree import flatten, unflatten
from b2b_jax.types import Params

TIED_TABLE = "embeddings/token/embedding"
# Neither language-model objective reads them: without a gradient they must not decay either.
UNREAD_HEADS = ("pooler/", "nsp/")


def is_stacked(axes: Axes) -> bool:
    """Whether a parameter has one entry per layer along its first dimension."""
    return axes.indexed[:1] == ("layers",)


def is_live(path: str, sub: SubModel, axes: Axes) -> bool:
    """Whether a step of this sub-model trains a parameter, or some of its layers."""
    if is_stacked(axes):
        return sub.live_layers > 0
    if path.startswith(UNREAD_HEADS):
        return False
    if path.startswith("embeddings/"):
        tied = path == TIED_TABLE and sub.output_table == "trained"
        return tied or sub.embeddings == "trained"
    return True


def select(params: Mapping[str, Any], sub: SubModel, table: AxisTable) -> Params:
    """Cut out what a step trains: live leaves only, stacked ones sliced to the live layers."""
    live = {}
    for path, leaf in flatten(params).items():
        if is_live(path, sub, table[path]):
            stacked = is_stacked(table[path])
            live[path] = leaf[sub.first_live : sub.depth] if stacked else leaf
    return unflatten(live)


def merge(
    params: Mapping[str, Any], live: Mapping[str, Any], sub: SubModel, table: AxisTable
) -> Params:
    """Write a trained cut back; everything outside of it is returned as it was."""
    merged = flatten(params)
    for path, leaf in flatten(live).items():
        if not is_stacked(table[path]) or leaf.shape[0] == merged[path].shape[0]:
            merged[path] = leaf
        else:
            merged[path] = merged[path].at[sub.first_live : sub.depth].set(leaf)
    return unflatten(merged)


def _mirrors(params: Mapping[str, Any]) -> Callable[[Any], bool]:
    """A test for subtrees of an optimizer state that have one entry per parameter."""
    structure = jax.tree.structure(params)
    return lambda node: jax.tree.structure(node) == structure


def map_mirrors(
    function: Callable[[Any], Any],
    opt_state: Any,
    params: Mapping[str, Any],
    *,
    otherwise: Callable[[Any], Any] = lambda leaf: leaf,
) -> Any:
    """Apply ``function`` to every subtree of an optax state that mirrors the parameters.

    Args:
        function: gets a nested dict with the structure of ``params``.
        opt_state: any optax state.
        params: a tree with the structure to look for.
        otherwise: applied to the remaining leaves, such as step counts.
    """
    is_mirror = _mirrors(params)
    return jax.tree.map(
        lambda node: function(node) if is_mirror(node) else otherwise(node),
        opt_state,
        is_leaf=is_mirror,
    )


def select_state(opt_state: Any, params: Mapping[str, Any], sub: SubModel, table: AxisTable) -> Any:
    """The optimizer state of what `select` cuts out of ``params``."""
    return map_mirrors(lambda node: select(node, sub, table), opt_state, params)


def merge_state(
    opt_state: Any,
    live_state: Any,
    params: Mapping[str, Any],
    sub: SubModel,
    table: AxisTable,
) -> Any:
    """Write a cut optimizer state back into the whole one."""
    is_mirror = _mirrors(params)
    old, structure = jax.tree.flatten(opt_state, is_leaf=is_mirror)
    new = jax.tree.leaves(live_state, is_leaf=_mirrors(select(params, sub, table)))
    return structure.unflatten(
        merge(before, after, sub, table) if is_mirror(before) else after
        for before, after in zip(old, new, strict=True)
    )
