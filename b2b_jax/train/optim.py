"""AdamW with decay by name, counted per layer, and the learning-rate schedule."""

from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from b2b_jax.axes import AxisTable
from b2b_jax.growth import GrowthPlan, learning_rate_scale
from b2b_jax.models import ConfigError
from b2b_jax.train.live import is_stacked
from b2b_jax.tree import map_with_path

DECAYED_ROLES = ("kernel", "embedding")


@dataclass(frozen=True)
class OptimizerConfig:
    """AdamW, linear warm-up and linear decay to zero."""

    peak_learning_rate: float = 1e-4
    """Highest learning rate, reached at the end of the warm-up."""
    warmup_steps: int = 10_000
    """Steps of linear warm-up, once per run, over both stages."""
    weight_decay: float = 0.01
    """Decoupled decay of kernels and embeddings; biases and norms are not decayed."""
    adam_b1: float = 0.9
    """Decay of the first moment."""
    adam_b2: float = 0.999
    """Decay of the second moment."""
    adam_eps: float = 1e-8
    """Added to the root of the second moment."""
    clip_norm: float = 1.0
    """Largest global norm of the gradient of the trained part; 0 switches clipping off."""
    rate_scale: Literal["none", "copies"] = "none"
    """Of a grown model: "copies" divides steps by copy counts, so that its function moves per step
    as far as the source's did; see `learning_rate_scale`."""
    state: Literal["reset", "grow"] = "reset"
    """Of a grown model, before its first step: "reset" starts new moments, "grow" takes the
    source's, grown as its parameters were. The learning-rate schedule starts anew in both."""

    def problems(self, total_steps: int) -> list[str]:
        """Every setting that makes no sense for a run of ``total_steps``."""
        bounds = {
            "peak_learning_rate": (self.peak_learning_rate > 0, "above 0"),
            "warmup_steps": (0 <= self.warmup_steps <= total_steps, f"0 to {total_steps}"),
            "weight_decay": (self.weight_decay >= 0, "at least 0"),
            "adam_b1": (0 <= self.adam_b1 < 1, "0 <= b1 < 1"),
            "adam_b2": (0 <= self.adam_b2 < 1, "0 <= b2 < 1"),
            "adam_eps": (self.adam_eps > 0, "above 0"),
            "clip_norm": (self.clip_norm >= 0, "at least 0"),
        }
        return [
            f"optimizer.{name}: found {getattr(self, name)}, expected {valid}"
            for name, (holds, valid) in bounds.items()
            if not holds
        ]


def learning_rate(
    step: Int[Array, ""] | int,
    config: OptimizerConfig,
    *,
    total_steps: int,
    peak: Float[Array, ""] | None = None,
) -> Float[Array, ""]:
    """The rate of a step: linear up to the peak, then linear down to zero at ``total_steps``.

    A function of the global step alone: one schedule over both stages.

    Args:
        step: updates done.
        config: peak and warm-up.
        total_steps: where the rate reaches zero.
        peak: an array to take for the config's peak, so that one program serves several.

    Example:
        >>> config = OptimizerConfig(peak_learning_rate=1.0, warmup_steps=2)
        >>> [round(float(learning_rate(s, config, total_steps=6)), 2) for s in range(6)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25]
    """
    up = (step + 1) / max(config.warmup_steps, 1)
    down = (total_steps - step) / max(total_steps - config.warmup_steps, 1)
    highest = jnp.float32(config.peak_learning_rate) if peak is None else peak
    return highest * jnp.minimum(1.0, jnp.minimum(up, down))


def scale_by_adam(config: OptimizerConfig, table: AxisTable) -> optax.GradientTransformation:
    """`optax.scale_by_adam` with one update count per layer instead of one for the whole model.

    Sub-model training updates layers unequally often, and Adam's bias correction is only right for
    the number of updates that a moment has had. The counts have the structure of the parameters,
    so that a cut through the layers cuts them too.
    """

    def init(params: Any) -> optax.ScaleByAdamState:
        def zero_count(path: str, leaf: Array) -> Int[Array, "..."]:
            layers = leaf.shape[:1] if is_stacked(table[path]) else (1,) * bool(leaf.ndim)
            return jnp.zeros(layers + (1,) * (leaf.ndim - 1), jnp.int32)

        return optax.ScaleByAdamState(
            count=map_with_path(zero_count, params),  # pyright: ignore[reportArgumentType]
            mu=jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params),
            nu=jax.tree.map(lambda p: jnp.zeros(p.shape, jnp.float32), params),
        )

    def update(updates: Any, state: Any, params: Any = None) -> tuple[Any, optax.ScaleByAdamState]:
        del params
        b1, b2 = config.adam_b1, config.adam_b2
        count = jax.tree.map(lambda n: n + 1, state.count)
        mu = jax.tree.map(lambda g, m: b1 * m + (1 - b1) * g, updates, state.mu)
        nu = jax.tree.map(lambda g, v: b2 * v + (1 - b2) * g * g, updates, state.nu)

        def direction(m: Array, v: Array, n: Array) -> Array:
            return (m / (1 - b1**n)) / (jnp.sqrt(v / (1 - b2**n)) + config.adam_eps)

        return (
            jax.tree.map(direction, mu, nu, count),
            optax.ScaleByAdamState(count=count, mu=mu, nu=nu),  # pyright: ignore
        )

    return optax.GradientTransformation(init, update)


def make_optimizer(
    config: OptimizerConfig,
    table: AxisTable,
    *,
    total_steps: int,
    plan: GrowthPlan | None = None,
    peak: Float[Array, ""] | None = None,
) -> optax.GradientTransformation:
    """AdamW as a chain of optax transforms; decay goes by a parameter's role, never by its ndim.

    Args:
        config: rates and constants.
        table: parameter path -> named axes.
        total_steps: where the learning rate reaches zero.
        plan: what grew the model; for ``rate_scale="copies"``.
        peak: an array to take for the config's peak learning rate.

    Raises:
        ConfigError: if the rates are to follow copy counts and there is no plan.
    """
    by_copies = []
    if config.rate_scale == "copies":
        if plan is None:
            raise ConfigError(
                "optimizer.rate_scale: 'copies' is for grown models; set init to a grown model"
            )
        by_copies.append(learning_rate_scale(plan))

    def decayed(params: Any) -> Any:
        return map_with_path(lambda path, _: table[path].role in DECAYED_ROLES, params)

    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else optax.identity()
    return optax.chain(
        clip,
        scale_by_adam(config, table),
        *by_copies,
        optax.add_decayed_weights(config.weight_decay, mask=decayed),
        optax.scale_by_learning_rate(
            lambda step: learning_rate(
                jnp.asarray(step), config, total_steps=total_steps, peak=peak
            )
        ),
    )


def with_moments(fresh: Any, moments: Any) -> Any:
    """An optimizer state with the Adam moments of another one; everything else starts anew.

    Args:
        fresh: of the optimizer that goes on.
        moments: a state that holds one `optax.ScaleByAdamState`.
    """

    def is_adam(node: Any) -> bool:
        return isinstance(node, optax.ScaleByAdamState)

    (adam,) = filter(is_adam, jax.tree.leaves(moments, is_leaf=is_adam))
    return jax.tree.map(lambda node: adam if is_adam(node) else node, fresh, is_leaf=is_adam)
