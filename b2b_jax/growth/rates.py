"""How much farther a grown model moves per step, and a transform that takes it back."""

import math

import jax.numpy as jnp
import numpy as np
import optax

from b2b_jax.growth.plan import GrowthPlan
from b2b_jax.growth.width import AnyArray, rescale
from b2b_jax.tree import map_with_path


def step_gain(plan: GrowthPlan) -> float:
    """How much farther the function moves per step of Adam after growth: the mean copy count.

    Adam gives every copy of a weight the step that the one weight had before. A sum over C copies
    of an input then moves C times as far. Averaged over the entries of all divided parameters.

    Example:
        >>> from b2b_jax.growth import plan_growth
        >>> from b2b_jax.models import preset
        >>> step_gain(plan_growth(preset("bert-12x384"), preset("bert-base"), method="fpi"))
        2.0
    """
    if not plan.copies:
        return 1.0
    gains, entries = 0.0, 0
    for path, axes in plan.axes.items():
        divided = [
            plan.maps[name]
            for name, is_divided in zip(axes.names, axes.divided, strict=True)
            if is_divided
        ]
        if not divided:
            continue
        count = math.prod(plan.target_shapes[path])
        # A layer that sums over all its inputs moves by the sum of their steps.
        gains += count * math.prod(float(grown.counts.mean()) for grown in divided)
        entries += count
    return gains / entries if entries else 1.0


def learning_rate_scale(plan: GrowthPlan) -> optax.GradientTransformation:
    r"""Scale the updates of a grown model so that its function moves as far as the source's did.

    Along consumed axes every update is multiplied by the share that growth gave to the copy (1/C
    for equal parts), as the weights were. With Adam and a fresh state on both sides, one step of
    the grown model then is the grown step of the source:

    $$\Delta U_{(i,j)} = \frac{1}{C_{g_{in}(i)}} \Delta W_{(g_{in}(i),\, g_{out}(j))}$$

    It belongs behind ``optax.scale_by_adam`` and before weight decay, which scales by itself.

    Args:
        plan: what grew the model. Parameters may be a part of its tree and of its layers.

    Example:
        >>> import optax
        >>> from b2b_jax.growth import plan_growth
        >>> from b2b_jax.models import preset
        >>> plan = plan_growth(preset("bert-12x384"), preset("bert-base"), method="fpi")
        >>> optimizer = optax.chain(
        ...     optax.scale_by_adam(), learning_rate_scale(plan), optax.scale(-1e-4)
        ... )
    """

    def scaled(path: str, update: AnyArray) -> AnyArray:
        axes = plan.axes[path]
        if not plan.copies:
            return update
        for dimension, (name, divided) in enumerate(zip(axes.names, axes.divided, strict=True)):
            if divided:
                update = rescale(jnp.asarray(update), plan.maps[name].weights, axis=dimension)
            if axes.role == "norm_scale" and plan.maps[name].is_mean.any():
                update = jnp.asarray(update) * np.float32(plan.maps[name].variance_ratio ** 0.5)
        return update

    def update(updates, state, params=None):
        del params
        return map_with_path(scaled, updates), state

    return optax.GradientTransformation(lambda params: optax.EmptyState(), update)  # pyright: ignore
