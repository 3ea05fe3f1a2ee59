"""How far copies have grown apart: a model whose copies stay equal has its old width."""

from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from b2b_jax.growth.errors import GrowthError
from b2b_jax.growth.maps import IndexMap
from b2b_jax.growth.plan import GrowthPlan
from b2b_jax.tree import difference, flatten


def copy_distances(params: Mapping[str, Any], plan: GrowthPlan) -> dict[str, Float[Array, ""]]:
    r"""The mean distance between every copy and its original, for every grown axis.

    A unit (a head, a neuron, an entry of the residual stream) is what is written to it: all
    parameters that produce its axis, norms and biases included. The distance of two is relative to
    their size, 0 for equal units and about 1.4 for unrelated ones:

    $$\frac{\lVert u_i - u_j \rVert}{\sqrt{(\lVert u_i \rVert^2 + \lVert u_j \rVert^2) / 2}}$$

    Units of axes inside a layer are compared in every layer. A pure function, to be jitted with a
    static plan.

    Args:
        params: nested dict of the grown model's parameters, at any time of its training.
        plan: what grew it.

    Raises:
        GrowthError: if the parameters do not fit the plan's target.

    Returns:
        axis name -> float32 scalar, for every width axis that has copies.

    Example:
        >>> import jax
        >>> from b2b_jax.growth import grow, plan_growth
        >>> from b2b_jax.models import build_model, preset
        >>> small = preset("bert-tiny").replace(num_hidden_layers=1)
        >>> plan = plan_growth(small, small.replace(intermediate_size=1024), method="fpi")
        >>> grown = grow(build_model(small).init(jax.random.key(0)), plan)
        >>> {name: float(distance) for name, distance in copy_distances(grown, plan).items()}
        {'mlp': 0.0}
    """
    flat = flatten(params)
    problems = difference(flat, plan.target_shapes)
    if problems:
        raise GrowthError(f"These parameters do not fit the plan's target.\n{problems}")
    found = {}
    for name in plan.copied_axes:
        copies, originals = _pairs(plan.maps[name])
        apart, size = jnp.zeros(()), jnp.zeros(())
        for path, axes in plan.axes.items():
            if name not in axes.produces or name in axes.absorbs:
                continue
            dimension = len(axes.indexed) + len(axes.consumes) + axes.produces.index(name)
            kept = [dimension]
            if name in plan.hidden_axes:
                kept.insert(0, axes.names.index("layers"))
            rest = [d for d in range(len(axes.names)) if d not in kept]
            units = jnp.transpose(jnp.asarray(flat[path], jnp.float32), kept + rest)
            units = units.reshape(*units.shape[: len(kept)], -1)
            one, other = units[..., copies, :], units[..., originals, :]
            apart = apart + ((one - other) ** 2).sum(-1)
            size = size + (one**2 + other**2).sum(-1) / 2
        found[name] = jnp.sqrt(apart / jnp.maximum(size, 1e-30)).mean()
    return found


def _pairs(grown: IndexMap) -> tuple[np.ndarray, np.ndarray]:
    """Copies but for the first of each entry, and the first that each of them repeats."""
    places = np.flatnonzero(grown.is_copy)
    _, first, inverse = np.unique(grown.indices[places], return_index=True, return_inverse=True)
    originals = places[first][inverse]
    repeats = originals != places
    return places[repeats], originals[repeats]
