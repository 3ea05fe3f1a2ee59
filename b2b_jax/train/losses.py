"""Token losses as (sum, count), so that a mean is taken once, over everything."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from b2b_jax.types import Abstract


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class LossSum:
    """A summed loss and the number of predictions in it; two of them add.

    Attributes:
        total: float32 scalar, nats.
        count: float32 scalar, the sum of the weights.
    """

    total: Float[Array, "..."] | Abstract
    count: Float[Array, "..."] | Abstract

    def __add__(self, other: "LossSum") -> "LossSum":
        return LossSum(self.total + other.total, self.count + other.count)

    @property
    def mean(self) -> Float[Array, "..."]:
        """Nats per prediction."""
        return self.total / self.count


def cross_entropy(
    logits: Float[Array, "... V"],
    labels: Int[Array, "..."],
    *,
    weights: Float[Array, "..."] | None = None,
) -> LossSum:
    """Summed softmax cross-entropy, float32.

    Args:
        logits: unnormalised scores.
        labels: the right class of each.
        weights: how much each counts; one by default.

    Example:
        >>> import jax.numpy as jnp
        >>> loss = cross_entropy(jnp.zeros((3, 8)), jnp.array([0, 1, 2]))
        >>> round(float(loss.mean), 4), float(loss.count)
        (2.0794, 3.0)
    """
    logits = logits.astype(jnp.float32)
    picked = jnp.take_along_axis(logits, labels[..., None], axis=-1)[..., 0]
    losses = jax.nn.logsumexp(logits, axis=-1) - picked
    weights = jnp.ones_like(losses) if weights is None else weights
    return LossSum(jnp.sum(losses * weights), jnp.sum(weights))
