"""Growth itself: one loop over the parameters, doing what the plan says."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from b2b_jax.growth.errors import GrowthError
from b2b_jax.growth.fresh import fresh_leaf
from b2b_jax.growth.maps import invert
from b2b_jax.growth.noise import noise_leaf
from b2b_jax.growth.plan import GrowthPlan
from b2b_jax.growth.width import AnyArray, along, expand, gather, take_from_upper
from b2b_jax.tree import difference, flatten, unflatten
from b2b_jax.types import Params


def grow(params: Mapping[str, Any], plan: GrowthPlan) -> Params:
    """Make the target's parameters from the source's (bert2BERT, Algorithm 1).

    A pure function of arrays; under ``jax.jit(..., out_shardings=...)`` the large parameters are
    created in their shards. Width first, then depth. Arithmetic is float32; every result has the
    dtype of the source's leaf.

    Args:
        params: nested dict of the source's parameters.
        plan: what `plan_growth` decided.

    Returns:
        nested dict of the target's parameters; no array is shared with the source.

    Raises:
        GrowthError: lists every missing, unexpected and misshapen source parameter, and every
            result of a wrong shape.

    Example:
        >>> import jax
        >>> from b2b_jax.growth import plan_growth
        >>> from b2b_jax.models import build_model, preset
        >>> small = preset("bert-tiny").replace(num_hidden_layers=1)
        >>> large = small.replace(hidden_size=256, num_attention_heads=8, intermediate_size=1024)
        >>> params = build_model(small).init(jax.random.key(0))
        >>> grown = grow(params, plan_growth(small, large, method="fpi"))
        >>> grown["layers"]["mlp"]["up"]["kernel"].shape
        (1, 256, 1024)
    """
    flat = flatten(params)
    _check(flat, plan.source_shapes, "The source's parameters do not fit the plan")
    grown = {path: _grow_leaf(path, leaf, plan) for path, leaf in flat.items()}
    _check(grown, plan.target_shapes, "Growth gave parameters of wrong shapes")
    return unflatten(grown)


def _check(found: dict[str, Any], expected: dict[str, tuple[int, ...]], title: str) -> None:
    differences = difference(found, expected)
    if differences:
        raise GrowthError(f"{title}.\n{differences}")


def _grow_leaf(path: str, leaf: Any, plan: GrowthPlan) -> Float[Array, "..."]:
    """One parameter of the target from the same parameter of the source."""
    leaf = jnp.asarray(leaf)
    dtype = leaf.dtype
    leaf = leaf.astype(jnp.float32)
    axes, shape = plan.axes[path], plan.target_shapes[path]
    if plan.method in ("direct_copy", "random"):
        fresh = fresh_leaf(path, axes, shape, key=jax.random.key(plan.seed))
        if plan.method == "direct_copy":
            fresh = fresh.at[tuple(slice(size) for size in leaf.shape)].set(leaf)
        return fresh.astype(dtype)
    grown = rescale_norm(expand(leaf, axes, plan.maps), path, plan)
    donated = plan.donated_axes(path)
    if donated:
        grown = take_from_upper(grown, axes, plan.maps, donated=donated)
    is_stacked = "layers" in axes.indexed
    if is_stacked:
        grown = gather(grown, plan.maps["layers"].indices, axis=axes.names.index("layers"))
    unread = plan.unread_entries(path)
    if unread.any():
        fresh = fresh_leaf(path, axes, shape, key=jax.random.key(plan.seed))
        grown = jnp.where(unread, fresh, grown)
    noise = noise_leaf(path, axes, shape, maps=plan.maps, scale=plan.noise, seed=plan.seed)
    if noise is not None:
        grown = grown + noise
    if plan.is_silenced(path):
        grown = jnp.where(along(plan.silent_layers, 0, grown.ndim), 0.0, grown)
    return jnp.array(grown, dtype=dtype)


def rescale_norm(
    widened: Float[AnyArray, "..."], path: str, plan: GrowthPlan, *, layer: int | None = None
) -> Float[AnyArray, "..."]:
    """Multiply the scale of a norm by what calibration found for it.

    Args:
        widened: all layers of the parameter, or only one.
        path: the parameter.
        plan: says what calibration found.
        layer: which of the source's layers it is, if it is one.
    """
    if path not in plan.norm_scales:
        return widened
    factors = np.asarray(plan.norm_scales[path], np.float32)
    if widened.ndim == 1:  # not stacked: one factor
        return widened * factors[0]
    return widened * along(factors if layer is None else factors[layer : layer + 1], 0, 2)


def shrink(params: Mapping[str, Any], plan: GrowthPlan) -> Params:
    """Undo a function-preserving plan: the source's parameters from the grown ones.

    Every source entry is read from its first copy and divided by what growth multiplied it by: to
    one unit in the last place for every divided axis, exactly where copy counts are powers of two.
    Noise is drawn again and taken away, to the rounding of what it was added to.

    Args:
        params: parameters of the plan's target.
        plan: an "fpi" plan.

    Raises:
        GrowthError: if the plan's method is not "fpi", if some source entry has no copy, or if the
            parameters do not fit the plan's target.
    """
    if plan.method != "fpi":
        raise GrowthError(f"only an 'fpi' plan can be undone; this one is {plan.method!r}")
    flat = flatten(params)
    _check(flat, plan.target_shapes, "These parameters do not fit the plan's target")
    return unflatten({path: _shrink_leaf(path, leaf, plan) for path, leaf in flat.items()})


def _shrink_leaf(path: str, leaf: Any, plan: GrowthPlan) -> Float[Array, "..."]:
    leaf = jnp.asarray(leaf)
    dtype = leaf.dtype
    leaf = leaf.astype(jnp.float32)
    axes, shape = plan.axes[path], plan.target_shapes[path]
    noise = noise_leaf(path, axes, shape, maps=plan.maps, scale=plan.noise, seed=plan.seed)
    if noise is not None:
        leaf = leaf - noise
    for dimension, (name, divided) in enumerate(zip(axes.names, axes.divided, strict=True)):
        grown = plan.maps[name]
        first = invert(grown).indices
        leaf = gather(leaf, first, axis=dimension)
        if divided:
            leaf = leaf / along(grown.weights[first], dimension, leaf.ndim)
        if axes.role == "norm_scale":
            leaf = leaf / np.float32(grown.variance_ratio**0.5)
    if path in plan.norm_scales:
        leaf = leaf / along(np.asarray(plan.norm_scales[path], np.float32), 0, leaf.ndim)
    return jnp.array(leaf, dtype=dtype)
