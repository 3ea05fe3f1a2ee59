"""What a training run carries from step to step."""

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Int

from b2b_jax.types import Abstract, Params


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TrainState:
    """Step, parameters and optimizer state. Randomness is derived from the seed and the step.

    Attributes:
        step: int32 scalar, the number of updates done.
        params: nested dict of float32 arrays.
        opt_state: the optimizer's state.
    """

    step: Int[Array, ""] | Abstract
    params: Params
    opt_state: Any

    @classmethod
    def create(cls, params: Params, optimizer: optax.GradientTransformation) -> "TrainState":
        """A state before its first update."""
        return cls(jnp.zeros((), jnp.int32), params, optimizer.init(params))
