"""Growth of one parameter, one layer at a time, for models that do not fit into memory twice."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jaxtyping import Float

from b2b_jax.growth.fresh import fresh_piece
from b2b_jax.growth.grow import rescale_norm
from b2b_jax.growth.maps import IndexMap
from b2b_jax.growth.noise import noise_piece
from b2b_jax.growth.plan import GrowthPlan
from b2b_jax.growth.width import Maps, expand, fill_from

ReadPiece = Callable[[str, int | None], Any]


def grow_piece(
    path: str, layer: int | None, read: ReadPiece, *, plan: GrowthPlan
) -> Float[np.ndarray, "..."]:
    """One parameter of the target, or one layer of a stacked one, as `grow` makes it, bit for bit.

    Reads no more of the source than that needs, at most two of its layers, and computes with numpy:
    nothing is compiled and nothing is moved to a device.

    Args:
        path: the parameter.
        layer: layer of the target; None for a parameter that is not stacked over layers.
        read: gives a parameter of the source: path, and source layer or None.
        plan: what `plan_growth` decided.

    Example:
        >>> import jax
        >>> from b2b_jax.growth import grow, plan_growth
        >>> from b2b_jax.models import build_model, preset
        >>> small = preset("bert-tiny").replace(num_hidden_layers=2)
        >>> plan = plan_growth(small, small.replace(intermediate_size=700, num_hidden_layers=5))
        >>> params = build_model(small).init(jax.random.key(0))
        >>> kernel = params["layers"]["mlp"]["up"]["kernel"]
        >>> piece = grow_piece("layers/mlp/up/kernel", 3, lambda path, i: kernel[i], plan=plan)
        >>> bool((piece == grow(params, plan)["layers"]["mlp"]["up"]["kernel"][3]).all())
        True
    """
    axes = plan.axes[path]
    if plan.method in ("direct_copy", "random"):
        return _partly_fresh(path, layer, read, plan=plan)
    if layer is None:
        source = np.asarray(read(path, None))
        whole = expand(source.astype(np.float32, copy=False), axes, plan.maps)
        whole = np.asarray(rescale_norm(whole, path, plan))
        return _perturbed(path, whole, plan=plan).astype(source.dtype, copy=False)
    donor = int(plan.maps["layers"].indices[layer])
    if plan.is_silenced(path) and plan.silent_layers[layer]:
        return np.zeros(plan.target_shapes[path][1:], np.asarray(read(path, donor)).dtype)

    def widened(
        piece: np.ndarray, number: int, maps: Maps = plan.maps
    ) -> Float[np.ndarray, "1 ..."]:
        single = piece.astype(np.float32, copy=False)[None]
        return np.asarray(rescale_norm(expand(single, axes, maps), path, plan, layer=number))

    own = np.asarray(read(path, donor))

    def finished(grown: np.ndarray) -> Float[np.ndarray, "..."]:
        whole = _perturbed(path, grown[0], plan=plan, layer=layer)
        return whole.astype(own.dtype, copy=False)

    donated = plan.donated_axes(path)
    if not donated or donor + 1 == plan.source_sizes["layers"]:
        return finished(widened(own, donor))
    above = np.asarray(read(path, donor + 1))
    name = donated[0]
    halves = len(donated) == 1 and name in axes.produces and name not in axes.consumes
    if halves and plan.maps[name].is_copy.all():
        # Each layer is widened only as far as its entries go into the result.
        mapped = plan.maps[name]
        first, rest = (
            IndexMap(part, mapped.source_size)
            for part in np.split(mapped.indices, [mapped.source_size])
        )
        lower = widened(own, donor, {**plan.maps, name: first})
        upper = widened(above, donor + 1, {**plan.maps, name: rest})
        grown = np.concatenate([lower, upper], axis=axes.names.index(name))
    else:
        upper = widened(above, donor + 1)
        grown = np.asarray(fill_from(upper, widened(own, donor), axes, plan.maps, donated=donated))
    return finished(grown)


def _perturbed(
    path: str, grown: np.ndarray, *, plan: GrowthPlan, layer: int | None = None
) -> Float[np.ndarray, "..."]:
    """Fresh where a kernel reads nothing yet, and with the noise of the plan."""
    axes, shape = plan.axes[path], grown.shape
    unread = plan.unread_entries(path)
    if unread.any():
        key = jax.random.key(plan.seed)
        fresh = fresh_piece(path, axes, shape, key=key, layer=layer)
        grown = np.where(unread if layer is None else unread[0], fresh, grown)
    noise = noise_piece(
        path, axes, shape, maps=plan.maps, scale=plan.noise, seed=plan.seed, layer=layer
    )
    return grown if noise is None else grown + np.asarray(noise)


def _partly_fresh(
    path: str, layer: int | None, read: ReadPiece, *, plan: GrowthPlan
) -> Float[np.ndarray, "..."]:
    stacked = layer is not None
    shape = plan.target_shapes[path][stacked:]
    key = jax.random.key(plan.seed)
    fresh = np.array(fresh_piece(path, plan.axes[path], shape, key=key, layer=layer))
    beyond = stacked and layer >= plan.source_sizes["layers"]
    source = np.asarray(read(path, 0 if beyond else layer))
    if plan.method == "direct_copy" and not beyond:
        fresh[tuple(slice(size) for size in source.shape)] = source
    return fresh.astype(source.dtype)
