"""Models run layer by layer: where in depth a difference begins, and what their norms read."""

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from b2b_jax.growth import GrowthPlan
from b2b_jax.models import Model, with_norm_inputs


@dataclass(frozen=True)
class Stage:
    """One part of a model, run.

    Attributes:
        prefix: path of its parameters, "" for the heads.
        layer: which layer it is; None for embeddings and heads.
        output: what it gives: hidden states, or every output of the heads by name.
        norm_inputs: path of a norm -> what it read.
    """

    prefix: str
    layer: int | None
    output: Any
    norm_inputs: dict[str, Float[np.ndarray, "..."]]


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
def _embed(model: Model, params: Any, ids: Array, types: Array | None) -> Any:
    return with_norm_inputs(model.embed)(params, ids, token_type_ids=types)


@functools.partial(jax.jit, static_argnums=0)
def _run_layer(model: Model, layers: Any, index: Array, x: Array, mask: Array | None) -> Any:
    one = jax.tree.map(
        lambda leaf: jax.lax.dynamic_index_in_dim(leaf, index, keepdims=False), layers
    )
    return with_norm_inputs(model.run_layer)(one, x, mask=mask)


@functools.partial(jax.jit, static_argnums=0)
def _outputs(model: Model, params: Any, x: Array) -> Any:
    return with_norm_inputs(model.outputs)(params, x)


def model_inputs(batch: Any) -> tuple[dict[str, Array], np.ndarray]:
    """What a model reads of a batch, and which of its tokens are no padding.

    Args:
        batch: token ids, or a mapping with ``input_ids`` and more.

    Returns:
        fields by name, and bool ``[B, T]``.
    """
    fields = batch if isinstance(batch, Mapping) else {"input_ids": batch}
    inputs = {
        name: jnp.asarray(fields[name])
        for name in ("input_ids", "attention_mask", "token_type_ids")
        if fields.get(name) is not None
    }
    mask = inputs.get("attention_mask")
    seen = np.ones(inputs["input_ids"].shape, bool) if mask is None else np.asarray(mask) > 0
    return inputs, seen


def stages(model: Model, params: Mapping[str, Any], inputs: Mapping[str, Array]) -> Iterator[Stage]:
    """Run the embeddings, every layer and the heads, one after the other, without dropout."""
    mask = inputs.get("attention_mask")
    mask = None if mask is None else mask.astype(bool)
    x, read = _embed(model, params, inputs["input_ids"], inputs.get("token_type_ids"))
    yield _stage("embeddings", None, x, read)
    for index in range(model.cfg.num_hidden_layers):
        x, read = _run_layer(model, params["layers"], np.int32(index), x, mask)
        yield _stage("layers", index, x, read)
    found, read = _outputs(model, params, x)
    heads = {name if name == "final_norm" else f"mlm/{name}": x for name, x in read.items()}
    yield _stage("", None, found, heads)


def _stage(prefix: str, layer: int | None, output: Any, read: Mapping[str, Array]) -> Stage:
    under = f"{prefix}/" if prefix else ""
    norm_inputs = {f"{under}{name}": np.asarray(x) for name, x in read.items()}
    return Stage(prefix, layer, jax.tree.map(np.asarray, output), norm_inputs)


def layer_errors(
    source: list[np.ndarray],
    grown: list[np.ndarray],
    seen: np.ndarray,
    *,
    plan: GrowthPlan | None,
) -> tuple[LayerError, ...]:
    """Compare the hidden states of a grown model with those of its source, layer by layer.

    Every layer of the grown model is compared with the source's layer that it copies, as far as
    the plan keeps their order; else with the layer of the same number, and those beyond the
    source's depth with the source's last.

    Args:
        source: hidden states of the source, embeddings first.
        grown: those of the grown model.
        seen: bool ``[B, T]``, False where a token is padding.
        plan: says which entry of the residual stream copies which; without it, the leading ones
            are taken to copy the source in order.
    """
    order = np.arange(len(grown) - 1)
    if plan is not None and (np.diff(plan.maps["layers"].indices) >= 0).all():
        order = plan.maps["layers"].indices  # also where silent layers lie between
    width = source[0].shape[-1]
    places, indices = compared_entries(width, plan)
    found = []
    for number, state in enumerate(grown):
        partner = min(int(order[number - 1]) + 1, len(source) - 1) if number else 0
        expected = source[partner][seen][:, indices]
        error = np.linalg.norm(state[seen][:, places] - expected)
        found.append(
            LayerError(
                _name(number), _name(partner), float(error / max(np.linalg.norm(expected), 1e-30))
            )
        )
    return tuple(found)


def compared_entries(width: int, plan: GrowthPlan | None) -> tuple[np.ndarray, np.ndarray]:
    """Entries of the residual stream that copy one of the source's, and which one."""
    if plan is None or plan.method not in ("fpi", "aki"):
        return np.arange(width), np.arange(width)
    grown = plan.maps["embed"]
    places = np.flatnonzero(grown.is_copy)
    return places, grown.indices[places]


def _name(number: int) -> str:
    return f"layer {number - 1}" if number else "embeddings"
