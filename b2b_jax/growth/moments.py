"""Growing optimizer state: the moments of a grown model that its source's gradients give."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from b2b_jax.axes import Axes
from b2b_jax.growth.errors import GrowthError
from b2b_jax.growth.plan import GrowthPlan
from b2b_jax.growth.width import along, gather
from b2b_jax.tree import flatten, unflatten
from b2b_jax.types import Params

POWERS = {
    "mu": 1,
    "m": 1,
    "trace": 1,
    "ema": 1,
    "nu": 2,
    "nu_max": 2,
    "v": 2,
    "v_row": 2,
    "v_col": 2,
}
"""Fields of optax states -> which power of the gradient they average."""
COUNTS = {"count"}
REDUCED = {"v_row": -1, "v_col": -2}
"""Adafactor's means -> which of the dimensions, by size, they are taken over."""


def grow_optimizer_state(opt_state: Any, plan: GrowthPlan) -> Any:
    r"""Grow an optax state through the plan that grew the parameters.

    In a function-preserving growth every copy of a produced entry gets an equal share of its
    gradient, so that the gradient of the grown model is

    $$\frac{\partial L}{\partial U} = \frac{1}{C_{out}}\,
      \frac{\partial L}{\partial W}\Big[g_{in}\Big]\Big[:, g_{out}\Big]$$

    with the copy counts of the produced axes only: dual to the parameters, which divide along the
    consumed ones. It holds for equal splits; with unequal shares of the residual stream only the
    sum over copies does, and noise and padded norms change the gradient as well. First moments
    follow the gradient, second moments its square. Entries that AKI takes from the layer above,
    and fresh ones, start from a first moment of zero and the mean second moment. What holds no
    entry per parameter, such as a step count, stays.

    Args:
        opt_state: any nesting of optax states whose moments mirror the parameters: Adam(W), Lion,
            momentum, Muon, Adafactor. Adafactor's factored moments are exact where every entry is
            copied equally often, and otherwise take the mean share.
        plan: what grew the parameters.

    Raises:
        GrowthError: names every field that mirrors the parameters and whose meaning is not known,
            and every factored moment that cannot be grown.

    Example:
        >>> import jax, optax
        >>> from b2b_jax.growth import plan_growth
        >>> from b2b_jax.models import build_model, preset
        >>> small = preset("bert-tiny").replace(num_hidden_layers=1)
        >>> plan = plan_growth(small, small.replace(intermediate_size=1024), method="fpi")
        >>> state = optax.adamw(1e-3).init(build_model(small).init(jax.random.key(0)))
        >>> grow_optimizer_state(state, plan)[0].mu["layers"]["mlp"]["up"]["kernel"].shape
        (1, 128, 1024)
    """
    problems: list[str] = []
    grown = _walk(opt_state, "", plan, problems)
    if problems:
        raise GrowthError("This optimizer state cannot be grown:\n  " + "\n  ".join(problems))
    return grown


def grow_gradient(grads: Mapping[str, Any], plan: GrowthPlan) -> Params:
    """The gradient that a grown model has on a batch, from that of its source (exact plans).

    Args:
        grads: nested dict of the source's gradients.
        plan: an "fpi" plan with equal splits, without noise and padding.
    """
    return unflatten(
        {path: _grow_moment(path, leaf, plan, power=1) for path, leaf in flatten(grads).items()}
    )


def _walk(node: Any, field: str, plan: GrowthPlan, problems: list[str]) -> Any:
    if isinstance(node, Mapping):
        if set(flatten(node)) == set(plan.axes):
            return _grow_mirror(node, field, plan, problems)
        return {key: _walk(child, key, plan, problems) for key, child in node.items()}
    if isinstance(node, tuple) and hasattr(node, "_fields"):
        names = node._fields  # pyright: ignore[reportAttributeAccessIssue]
        return type(node)(
            *(_walk(child, name, plan, problems) for name, child in zip(names, node, strict=True))
        )
    if isinstance(node, tuple | list):
        return type(node)(_walk(child, field, plan, problems) for child in node)
    return node


def _grow_mirror(
    node: Mapping[str, Any], field: str, plan: GrowthPlan, problems: list[str]
) -> Params:
    grown = {}
    for path, leaf in flatten(node).items():
        is_whole = getattr(leaf, "shape", ()) == plan.source_shapes[path]
        if not is_whole and getattr(leaf, "shape", ()) in ((), (1,)):
            grown[path] = leaf  # left out by a mask, or a placeholder
        elif field in COUNTS:
            grown[path] = _grow_count(path, leaf, plan)
        elif field not in POWERS:
            problems.append(
                f"{field or 'an unnamed field'}/{path}: not known to average the gradient or its "
                f"square; known are {sorted(POWERS)}"
            )
        elif leaf.shape == plan.source_shapes[path]:
            grown[path] = _grow_moment(path, leaf, plan, power=POWERS[field])
        elif field in REDUCED:
            grown[path] = _grow_factored(path, leaf, plan, field=field, problems=problems)
        else:
            problems.append(
                f"{field}/{path}: found shape {leaf.shape}, expected {plan.source_shapes[path]}"
            )
    return unflatten(grown)


def _grow_count(path: str, leaf: Any, plan: GrowthPlan) -> Any:
    """A count per layer follows its layer; others have size one along every dimension."""
    for dimension, name in enumerate(plan.axes[path].names[: leaf.ndim]):
        if name == "layers" and leaf.shape[dimension] == plan.source_sizes["layers"]:
            leaf = gather(leaf, plan.maps["layers"].indices, axis=dimension)
    return leaf


def _share(axes: Axes, dimension: int, plan: GrowthPlan) -> np.ndarray | None:
    """What part of the gradient every target entry along a dimension gets; None for all of it.

    It is the part of the weights that consumers of the entry read it with.
    """
    name = axes.names[dimension]
    first_produced = len(axes.indexed) + len(axes.consumes)
    if dimension < first_produced or axes.divided[dimension] or name not in plan.maps:
        return None
    return plan.maps[name].weights


def _grow_moment(path: str, leaf: Any, plan: GrowthPlan, *, power: int) -> Float[Array, "..."]:
    leaf = jnp.asarray(leaf)
    axes, dtype = plan.axes[path], leaf.dtype
    if plan.method in ("direct_copy", "random"):
        fresh = jnp.full(plan.target_shapes[path], _start(leaf, power), dtype)
        if plan.method == "random":
            return fresh
        return fresh.at[tuple(slice(size) for size in leaf.shape)].set(leaf)
    grown = leaf.astype(jnp.float32)
    for dimension, name in enumerate(axes.names):
        # Means have the index -1 and start afresh below, whatever is gathered for them.
        grown = gather(grown, np.maximum(plan.maps[name].indices, 0), axis=dimension)
        share = _share(axes, dimension, plan)
        if share is not None:
            grown = grown * along(share, dimension, grown.ndim) ** power
        if axes.role == "norm_scale":  # scaled the other way than the scale itself
            grown = grown / np.float32(plan.maps[name].variance_ratio ** (power / 2))
    if path in plan.norm_scales:
        factors = np.asarray(plan.norm_scales[path], np.float32)
        if axes.indexed[:1] == ("layers",):
            factors = factors[plan.maps["layers"].indices]
        grown = grown / along(factors, 0, grown.ndim) ** power
    return jnp.where(_starts_afresh(path, plan), _start(leaf, power), grown).astype(dtype)


def _start(leaf: Any, power: int) -> Float[Array, ""]:
    """The moment of an entry that had no gradient in the source.

    Zero for the gradient. For its square the mean of the parameter: with zero, and a step count
    that goes on, nothing would correct the bias, and the first steps of Adam would be several
    times too large.
    """
    return jnp.asarray(leaf, jnp.float32).mean() if power == 2 else jnp.float32(0)


def _starts_afresh(path: str, plan: GrowthPlan) -> np.ndarray:
    """Entries with no gradient of their own in the source; bool, of a shape that broadcasts.

    They come from the layer above, or are in a silent layer, or are no copies.
    """
    axes = plan.axes[path]
    ndim = len(axes.names)
    afresh = np.zeros((1,) * ndim, bool)
    for dimension, name in enumerate(axes.names):
        afresh = afresh | along(~plan.maps[name].is_copy, dimension, ndim)
    if axes.indexed[:1] != ("layers",):
        return afresh
    # The source's last layer has none above it to take from.
    has_upper = plan.maps["layers"].indices != plan.source_sizes["layers"] - 1
    afresh = afresh | along(plan.silent_layers, 0, ndim)
    for dimension, name in enumerate(axes.names):
        if name in plan.donated_axes(path):
            is_new = along(plan.maps[name].is_new_copy, dimension, ndim)
            afresh = afresh | (along(has_upper, 0, ndim) & is_new)
    return afresh


def _factored(shape: tuple[int, ...]) -> list[int]:
    """Dimensions by size, as optax sorts them to choose those that it factors."""
    return [int(d) for d in np.argsort(shape)]


def _grow_factored(
    path: str, leaf: Any, plan: GrowthPlan, *, field: str, problems: list[str]
) -> Any:
    source, target = plan.source_shapes[path], plan.target_shapes[path]
    reduced = _factored(source)[REDUCED[field]]
    kept = [d for d in range(len(source)) if d != reduced]
    if (
        leaf.shape != tuple(source[d] for d in kept)
        or _factored(target)[-2:] != (_factored(source)[-2:])
    ):
        problems.append(
            f"{field}/{path}: factored over other dimensions at {target} than at {source}; "
            "start this state afresh"
        )
        return leaf
    axes, dtype = plan.axes[path], leaf.dtype
    if plan.method in ("direct_copy", "random"):
        return jnp.full([target[d] for d in kept], _start(leaf, 2), dtype)
    grown = jnp.asarray(leaf, jnp.float32)
    copies = plan.maps[axes.names[reduced]].is_copy
    share = _share(axes, reduced, plan)
    grown = grown * float((copies * (1.0 if share is None else share**2)).mean())
    for position, dimension in enumerate(kept):
        indices = np.maximum(plan.maps[axes.names[dimension]].indices, 0)
        grown = gather(grown, indices, axis=position)
        is_copy = along(plan.maps[axes.names[dimension]].is_copy, position, grown.ndim)
        grown = jnp.where(is_copy, grown, _start(leaf, 2))
        share = _share(axes, dimension, plan)
        if share is not None:
            grown = grown * along(share, position, grown.ndim) ** 2
    return grown.astype(dtype)
