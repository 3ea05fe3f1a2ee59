"""Growing parameters: pure functions and the plan that they follow. No flax, no files."""

from b2b_jax.growth.errors import GrowthError
from b2b_jax.growth.grow import grow, shrink
from b2b_jax.growth.maps import IndexMap
from b2b_jax.growth.moments import grow_gradient, grow_optimizer_state
from b2b_jax.growth.plan import GrowthPlan
from b2b_jax.growth.planning import plan_growth
from b2b_jax.growth.stream import grow_piece

__all__ = [
    "GrowthError",
    "GrowthPlan",
    "IndexMap",
    "grow",
    "grow_gradient",
    "grow_optimizer_state",
    "grow_piece",
    "plan_growth",
    "shrink",
]
