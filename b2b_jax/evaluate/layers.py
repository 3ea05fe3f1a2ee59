"""Hidden states of two models side by side: where in depth a difference begins."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from b2b_jax.growth import GrowthPlan
from b2b_jax.models import Model


@dataclass(frozen=True)
class LayerError:
    """How far the output of one layer is from that of the source.

    Attributes:
        name: "embeddings", "layer 0", ...
        source_name: what it is compared with.
        relative_error: norm of the difference over the norm of the source's hidden state.
    """

    name: str
    source_name: str
    relative_error: float


@functools.partial(jax.jit, static_argnums=0)
def _embed(model: Model, params: Any, ids: Array, types: Array | None) -> Array:
    return model.embed(params, ids, token_type_ids=types)


@functools.partial(jax.jit, static_argnums=0)
def _run_layer(model: Model, layers: Any, index: Array, x: Array, mask: Array | None) -> Array:
    one = jax.tree.map(lambda leaf: jax.lax.dynamic_slice_in_dim(leaf, index, 1), layers)
    return model.run_layers(one, x, mask=mask)


def hidden_states(
    model: Model, params: Mapping[str, Any], inputs: Mapping[str, Array]
) -> Iterator[Float[Array, "B T D"]]:
    """The output of the embeddings and of every layer, one after the other, without dropout."""
    mask = inputs.get("attention_mask")
    mask = None if mask is None else mask.astype(bool)
    x_BTD = _embed(model, params, inputs["input_ids"], inputs.get("token_type_ids"))
    yield x_BTD
    for index in range(model.cfg.num_hidden_layers):
        x_BTD = _run_layer(model, params["layers"], jnp.int32(index), x_BTD, mask)
        yield x_BTD


def layer_errors(
    source: list[np.ndarray],
    grown: list[np.ndarray],
    seen: np.ndarray,
    *,
    plan: GrowthPlan | None,
) -> tuple[LayerError, ...]:
    """Compare the hidden states of a grown model with those of its source, layer by layer.

    Every layer of the grown model is compared with the source's layer of the same number, and
    those beyond the source's depth with the source's last.

    Args:
        source: hidden states of the source, embeddings first.
        grown: those of the grown model.
        seen: bool ``[B, T]``, False where a token is padding.
        plan: says which entry of the residual stream copies which; without it, the leading ones
            are taken to copy the source in order.
    """
    width = source[0].shape[-1]
    indices = np.arange(width) if plan is None else plan.maps["embed"].indices
    found = []
    for number, state in enumerate(grown):
        partner = min(number, len(source) - 1)
        expected = source[partner][seen][:, indices]
        error = np.linalg.norm(state[seen][:, : len(indices)] - expected)
        found.append(
            LayerError(
                _name(number), _name(partner), float(error / max(np.linalg.norm(expected), 1e-30))
            )
        )
    return tuple(found)


def _name(number: int) -> str:
    return f"layer {number - 1}" if number else "embeddings"
