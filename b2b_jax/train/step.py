"""The compiled programs of a run: one training step per sub-model, one evaluation step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from b2b_jax.models import Model
from b2b_jax.train.live import merge, merge_state, select, select_state
from b2b_jax.train.losses import LossSum
from b2b_jax.train.objective import Objective, prefix_losses, training_loss
from b2b_jax.train.sharding import batch_sharding
from b2b_jax.train.stages import SubModel
from b2b_jax.train.state import TrainState
from b2b_jax.types import Abstract, Params

# Held-out masks are the same in every run, whatever its seed, so that losses can be compared.
HELDOUT_SEED = 20211014


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepMetrics:
    """What one training step reports.

    Attributes:
        loss: of the sub-model that was trained.
        grad_norm: float32 scalar, global norm over the trained part, before clipping.
    """

    loss: LossSum
    grad_norm: Float[Array, ""] | Abstract


TrainStep = Callable[[TrainState, Int[Array, "B T"]], tuple[TrainState, StepMetrics]]
EvalStep = Callable[[Params, Int[Array, "B T"], Int[Array, ""]], LossSum]


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    objective: Objective,
    sub: SubModel,
    seed: int,
    micro_batches: int,
    mesh: Mesh,
) -> TrainStep:
    """Build the pure step that trains one sub-model; the caller compiles it with `jax.jit`.

    Gradients are those of the mean over the whole global batch: (sum, count) pairs are added over
    micro-batches and devices and divided once. Masks and dropout are functions of (seed, step).

    Args:
        model: the full model.
        optimizer: from `make_optimizer`.
        objective: masked or causal language modelling.
        sub: which layers run and which are trained.
        seed: of masks and dropout.
        micro_batches: parts of the batch whose gradients are accumulated one after the other.
        mesh: device mesh that the activations are split over.
    """
    cfg = model.cfg
    drops = cfg.hidden_dropout_prob > 0 or cfg.attention_probs_dropout_prob > 0
    in_shards = batch_sharding(mesh)

    def constrain(x: Array) -> Array:
        return jax.lax.with_sharding_constraint(x, in_shards)

    def step(state: TrainState, input_ids: Int[Array, "B T"]) -> tuple[TrainState, StepMetrics]:
        step_key = jax.random.fold_in(jax.random.key(seed), state.step)
        mask_key, dropout_key = jax.random.split(step_key)
        example = objective.example(input_ids, mask_key)
        live = select(state.params, sub, model.axes)

        def total(live: Params, part: Any, index: Int[Array, ""]) -> tuple[Array, LossSum]:
            loss = training_loss(
                live,
                state.params,
                part,
                model=model,
                sub=sub,
                dropout_key=jax.random.fold_in(dropout_key, index) if drops else None,
                constrain=constrain,
            )
            return loss.total, loss

        gradient = jax.grad(total, has_aux=True)
        if micro_batches == 1:
            grads, loss = gradient(live, example, jnp.int32(0))
        else:

            def accumulate(carry: Any, part: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, carry, gradient(live, part[1], part[0])), None

            # Strided, so that every device finds its share of each part among its own rows.
            parts = jax.tree.map(
                lambda x: jnp.moveaxis(x.reshape(-1, micro_batches, *x.shape[1:]), 1, 0), example
            )
            zero = (jax.tree.map(jnp.zeros_like, live), LossSum(jnp.zeros(()), jnp.zeros(())))
            (grads, loss), _ = jax.lax.scan(accumulate, zero, (jnp.arange(micro_batches), parts))
        grads = jax.tree.map(lambda g: g / loss.count, grads)
        live_opt = select_state(state.opt_state, state.params, sub, model.axes)
        updates, live_opt = optimizer.update(grads, live_opt, live)
        new_live: Any = optax.apply_updates(live, updates)
        new_state = TrainState(
            step=state.step + 1,
            params=merge(state.params, new_live, sub, model.axes),
            opt_state=merge_state(state.opt_state, live_opt, state.params, sub, model.axes),
        )
        return new_state, StepMetrics(loss, optax.tree.norm(grads))

    return step


def make_eval_step(
    model: Model, *, objective: Objective, depths: Sequence[int], mesh: Mesh
) -> EvalStep:
    """Build the pure step that evaluates several bottom prefixes of the model on one batch.

    The masks of batch ``index`` are the same in every run.
    """
    in_shards = batch_sharding(mesh)

    def step(params: Params, input_ids: Int[Array, "B T"], index: Int[Array, ""]) -> LossSum:
        key = jax.random.fold_in(jax.random.key(HELDOUT_SEED), index)
        return prefix_losses(
            params,
            objective.example(input_ids, key),
            model=model,
            depths=depths,
            constrain=lambda x: jax.lax.with_sharding_constraint(x, in_shards),
        )

    return step
