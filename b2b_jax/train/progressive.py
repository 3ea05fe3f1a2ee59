"""The step between two phases: layers begin as copies of others (StackBERT, MSLT)."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from b2b_jax.axes import AxisTable
from b2b_jax.train.live import is_stacked, map_mirrors
from b2b_jax.train.schedule import Phase
from b2b_jax.train.state import TrainState
from b2b_jax.tree import map_with_path


def begin_phase(state: TrainState, phase: Phase, table: AxisTable) -> TrainState:
    """Rearrange the layers as a phase wants them, and start the moments anew that it names.

    Embeddings and heads stay as they are, and so does every count that a learning rate follows: one
    schedule goes on over all phases (Gong et al., 2019, restart the moments but not the rate).

    Args:
        state: after the last step of the phase before.
        phase: the one that begins.
        table: parameter path -> named axes.
    """
    if not phase.layer_order:
        return state
    order = np.asarray(phase.layer_order)
    copied = order != np.arange(len(order))

    def rearranged(path: str, leaf: Array) -> Array:
        return leaf[order] if is_stacked(table[path]) else leaf

    def anew(path: str, leaf: Array) -> Array:
        if phase.fresh_moments == "all":
            return jnp.zeros_like(leaf)
        if not is_stacked(table[path]):
            return leaf
        return jnp.where(copied.reshape(-1, *(1,) * (leaf.ndim - 1)), 0, leaf)

    def moments(node: Mapping[str, Any]) -> Any:
        return node if phase.fresh_moments == "none" else map_with_path(anew, node)

    return TrainState(
        step=state.step,
        params=map_with_path(rearranged, state.params),
        opt_state=map_mirrors(moments, state.opt_state, state.params),
    )
