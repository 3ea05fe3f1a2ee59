"""Checks of a growth plan that was read from a file, which anyone may have edited."""

from typing import get_args

import numpy as np

from b2b_jax.growth.errors import GrowthError
from b2b_jax.growth.plan import GrowthPlan, Method


def check_stored(plan: GrowthPlan) -> GrowthPlan:
    """Return the plan, or raise one `GrowthError` that lists what does not fit together."""
    found = []
    if plan.maps.keys() != plan.source_sizes.keys():
        found.append(f"maps of {sorted(plan.maps)}, expected {sorted(plan.source_sizes)}")
    for name, grown in plan.maps.items():
        ends = plan.source_sizes.get(name), plan.target_sizes.get(name)
        if (grown.source_size, grown.target_size) != ends:
            found.append(f"{name}: a map {grown.source_size} -> {grown.target_size}, sizes {ends}")
    if plan.method not in get_args(Method):
        found.append(f"method {plan.method!r}, expected one of {get_args(Method)}")
    numbers = [plan.noise, plan.seed]
    numbers += [factor for factors in plan.norm_scales.values() for factor in factors]
    if not np.isfinite(numbers).all():
        found.append("numbers that are not finite")
    if found:
        raise GrowthError("this growth plan was damaged; found:\n  " + "\n  ".join(found))
    return plan
