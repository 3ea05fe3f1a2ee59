"""The compiled programs of a run: one training step per sub-model, one evaluation step."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int, Integer

from b2b_jax.models import Model
from b2b_jax.train.inherit import Hints, Inheritance
from b2b_jax.train.live import merge, merge_state, select, select_state
from b2b_jax.train.losses import LossSum
from b2b_jax.train.objective import Example, Objective, prefix_losses, training_hidden
from b2b_jax.train.parts import in_parts
from b2b_jax.train.stages import SubModel
from b2b_jax.train.state import TrainState
from b2b_jax.train.vocabulary import VocabularyLoss
from b2b_jax.types import Abstract, Params, PRNGKey

# Held-out masks are the same in every run, whatever its seed, so that losses can be compared.
HELDOUT_SEED = 20211014


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class StepMetrics:
    """What one training step reports.

    Attributes:
        loss: of the sub-model that was trained; the tokens' cross-entropy, also beside a teacher.
        grad_norm: float32 scalar, global norm over the trained part, before clipping.
    """

    loss: LossSum
    grad_norm: Float[Array, ""] | Abstract


TrainStep = Callable[..., tuple[TrainState, StepMetrics]]
"""``(state, input_ids)``, and ``hints`` of the teacher where there is one."""
EvalStep = Callable[[Params, Int[Array, "B T"], Int[Array | np.ndarray, ""]], LossSum]


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Lesson:
    """What a step learns from, with one row per sequence everywhere.

    Attributes:
        example: inputs and targets.
        hints: what is known of the teacher's predictions beforehand, if anything.
    """

    example: Example
    hints: Any


def step_keys(seed: int | Integer[Array, ""], step: Int[Array, ""]) -> tuple[PRNGKey, PRNGKey]:
    """Keys of a step's masks and of its dropout, from nothing but the seed and the step."""
    mask_key, dropout_key = jax.random.split(jax.random.fold_in(jax.random.key(seed), step))
    return mask_key, dropout_key


def make_train_step(
    model: Model,
    optimizer: optax.GradientTransformation,
    *,
    objective: Objective,
    sub: SubModel,
    seed: int | Integer[Array, ""],
    micro_batches: int,
    vocabulary: VocabularyLoss | None = None,
    inheritance: Inheritance | None = None,
) -> TrainStep:
    """Build the pure step that trains one sub-model; the caller compiles it with `jax.jit`.

    Gradients are those of the mean over the whole global batch: (sum, count) pairs are added over
    micro-batches and devices and divided once. Masks and dropout are functions of (seed, step).

    Args:
        model: the full model; it knows where activations lie.
        optimizer: from `make_optimizer`.
        objective: masked or causal language modelling.
        sub: which layers run and which are trained.
        seed: of masks and dropout.
        micro_batches: parts of the batch whose gradients are accumulated one after the other.
        vocabulary: the loss of hidden states; on one device by default.
        inheritance: how a teacher's predictions enter the loss; the step then takes its ``hints``.
    """
    cfg = model.cfg
    loss_of = vocabulary or VocabularyLoss()
    drops = cfg.hidden_dropout_prob > 0 or cfg.attention_probs_dropout_prob > 0

    def step(
        state: TrainState, input_ids: Int[Array, "B T"], hints: Hints | None = None
    ) -> tuple[TrainState, StepMetrics]:
        mask_key, dropout_key = step_keys(seed, state.step)
        lesson = Lesson(objective.example(input_ids, mask_key), None)
        if inheritance is not None:
            lesson = Lesson(lesson.example, inheritance.per_row(hints))
        live = select(state.params, sub, model.axes)

        def total(live: Params, part: Lesson, index: Int[Array, ""]) -> tuple[Array, LossSum]:
            example = part.example
            hidden, decoder = training_hidden(
                live,
                state.params,
                example,
                model=model,
                sub=sub,
                dropout_key=jax.random.fold_in(dropout_key, index) if drops else None,
            )
            loss = loss_of(hidden, decoder, labels=example.labels, weights=example.weights)
            if inheritance is None:
                return loss.total, loss
            known = hints if part.hints is None else part.hints
            assert known is not None
            kl = inheritance.divergence(
                hidden,
                decoder,
                hints=known,
                example=example,
                parts=loss_of.parts(*example.labels.shape, vocab=cfg.vocab_size),
            )
            rate = inheritance.rate(state.step)
            return (1 - rate) * loss.total + rate * kl.total, loss

        gradient = jax.grad(total, has_aux=True)
        if micro_batches == 1:
            grads, loss = gradient(live, lesson, jnp.int32(0))
        else:

            def accumulate(carry: Any, part: Any) -> tuple[Any, None]:
                return jax.tree.map(jnp.add, carry, gradient(live, part[1], part[0])), None

            parts = in_parts(lesson, micro_batches)
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
    model: Model,
    *,
    objective: Objective,
    depths: Sequence[int],
    micro_batches: int = 1,
    vocabulary: VocabularyLoss | None = None,
) -> EvalStep:
    """Build the pure step that evaluates several bottom prefixes of the model on one batch.

    The masks of batch ``index`` are the same in every run.

    Args:
        model: what is evaluated.
        objective: what is predicted.
        depths: of the prefixes.
        micro_batches: parts of the batch that are taken one after the other.
        vocabulary: the loss of hidden states; by default on one device.
    """

    def loss_of(params: Params, example: Example) -> LossSum:
        return prefix_losses(
            params,
            example,
            model=model,
            depths=depths,
            vocabulary=vocabulary or VocabularyLoss(),
        )

    def step(
        params: Params, input_ids: Int[Array, "B T"], index: Int[Array | np.ndarray, ""]
    ) -> LossSum:
        key = jax.random.fold_in(jax.random.key(HELDOUT_SEED), index)
        example = objective.example(input_ids, key)
        if micro_batches == 1:
            return loss_of(params, example)

        def add(total: LossSum, part: Example) -> tuple[LossSum, None]:
            return jax.tree.map(jnp.add, total, loss_of(params, part)), None

        zero = LossSum(jnp.zeros(len(depths)), jnp.zeros(len(depths)))
        return jax.lax.scan(add, zero, in_parts(example, micro_batches))[0]

    return step
