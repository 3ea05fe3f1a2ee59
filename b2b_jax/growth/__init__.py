"""Growing parameters: pure functions and the plan that they follow. No flax, no files."""

from b2b_jax.growth.calibration import NormCalibration, calibrate_norms
from b2b_jax.growth.chain import compose_plans
from b2b_jax.growth.errors import GrowthError
from b2b_jax.growth.grow import grow, shrink
from b2b_jax.growth.mappings import mean_pad_epsilon
from b2b_jax.growth.maps import IndexMap
from b2b_jax.growth.moments import grow_gradient, grow_optimizer_state
from b2b_jax.growth.plan import GrowthPlan
from b2b_jax.growth.planning import plan_growth
from b2b_jax.growth.rates import learning_rate_scale
from b2b_jax.growth.stream import grow_piece
from b2b_jax.growth.symmetry import copy_distances

__all__ = [
    "GrowthError",
    "GrowthPlan",
    "IndexMap",
    "NormCalibration",
    "calibrate_norms",
    "compose_plans",
    "copy_distances",
    "grow",
    "grow_gradient",
    "grow_optimizer_state",
    "grow_piece",
    "learning_rate_scale",
    "mean_pad_epsilon",
    "plan_growth",
    "shrink",
]
