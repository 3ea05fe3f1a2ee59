"""Knowledge inheritance (Qin et al., 2021): a small model's predictions beside the labels."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from b2b_jax.models import Decoder, Model
from b2b_jax.train.losses import LossSum
from b2b_jax.train.objective import Example, at_positions
from b2b_jax.train.parts import in_parts, joined
from b2b_jax.types import Abstract


@dataclass(frozen=True)
class InheritConfig:
    """Learning from a teacher for the first steps; switched off by ``steps=0``."""

    teacher: str = ""
    """Folder of the model to learn from, of the same vocabulary; usually a smaller one."""
    steps: int = 0
    """Steps over which the teacher's share of the loss falls from one to zero."""
    temperature: float = 2.0
    """Of both distributions; above 1 the teacher's less likely tokens weigh more."""
    top_k: int = 0
    """Most likely tokens to keep of each prediction, written once by a pass of the teacher before
    the run and read by every run with the same batches; 0 runs the teacher in every step."""
    cache_dir: str = "runs/teachers"
    """Folder for what top_k keeps."""

    def problems(self, total_steps: int, vocab_size: int) -> list[str]:
        """Every setting that makes no sense for a run of ``total_steps``."""
        if not self.steps:
            unused = "inherit.teacher: found a teacher, but inherit.steps is 0"
            return [unused] if self.teacher else []
        found = []
        if not 0 < self.steps <= total_steps:
            found.append(
                f"inherit.steps: found {self.steps}, expected 0 to train.steps ({total_steps})"
            )
        if not self.teacher:
            found.append("inherit.teacher: found nothing, expected the folder of a trained model")
        elif not Path(self.teacher).is_dir():
            found.append(f"inherit.teacher: no folder {self.teacher}; train the small model first")
        if not self.temperature > 0:
            found.append(f"inherit.temperature: found {self.temperature}, expected above 0")
        if not 0 <= self.top_k <= vocab_size:
            found.append(
                f"inherit.top_k: found {self.top_k}, expected 0 (no cache) to {vocab_size}"
            )
        return found


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class TopLogits:
    """The most likely tokens of every prediction.

    Attributes:
        ids: int32 ``[B, M, K]``.
        logits: float ``[B, M, K]``, so that the temperature can still be chosen.
    """

    ids: Int[Array, "B M K"] | Abstract
    logits: Float[Array, "B M K"] | Abstract


Hints = Mapping[str, Any] | TopLogits
"""The teacher's parameters, or what was kept of its predictions."""


@dataclass(frozen=True)
class SoftTargets:
    """A teacher's distribution over the vocabulary, or over some tokens of each prediction.

    Attributes:
        logits: ``[B, M, V]``, or ``[B, M, K]`` with ids.
        ids: ``[B, M, K]`` or None for the whole vocabulary.
        temperature: of both distributions.
    """

    logits: Float[Array, "B M N"]
    ids: Int[Array, "B M K"] | None
    temperature: float

    def divergence(
        self, student: Float[Array, "B M V"], *, weights: Float[Array, "B M"]
    ) -> LossSum:
        r"""$\tau^2 \, KL(P_T^\tau \| P_S^\tau)$, summed over predictions (Qin et al., 2021).

        Where only some tokens are known of the teacher, its distribution is over these, and the
        student's over the whole vocabulary.

        Args:
            student: its logits.
            weights: how much each prediction counts.

        Example:
            >>> import jax.numpy as jnp
            >>> same = jnp.array([[[0.0, 1.0, 2.0]]])
            >>> soft = SoftTargets(same, None, temperature=2.0)
            >>> abs(round(float(soft.divergence(same, weights=jnp.ones((1, 1))).total), 6))
            0.0
        """
        tau = self.temperature
        log_teacher = jax.nn.log_softmax(self.logits.astype(jnp.float32) / tau)
        log_student = jax.nn.log_softmax(student.astype(jnp.float32) / tau)
        if self.ids is not None:
            log_student = jnp.take_along_axis(log_student, self.ids, axis=-1)
        kl = jnp.sum(jnp.exp(log_teacher) * (log_teacher - log_student), axis=-1)
        return LossSum(tau**2 * jnp.sum(kl * weights), jnp.sum(weights))


@dataclass(frozen=True)
class Inheritance:
    r"""How a teacher enters the loss: $(1 - a_t) CE + a_t \tau^2 KL$, $a_t = \max(0, 1 - t / T)$.

    Attributes:
        teacher: the model to learn from.
        config: length, temperature, what is kept of its predictions.
    """

    teacher: Model
    config: InheritConfig

    def rate(self, step: Int[Array, ""] | int) -> Float[Array, ""]:
        """The teacher's share of the loss at a step, falling linearly from one to zero."""
        return jnp.maximum(0.0, 1.0 - jnp.float32(step) / self.config.steps)

    def per_row(self, hints: Hints | None) -> TopLogits | None:
        """What of the hints has one row per sequence."""
        return hints if isinstance(hints, TopLogits) else None

    def keep(self, params: Mapping[str, Any], example: Example, *, parts: int = 1) -> TopLogits:
        """The ``top_k`` most likely tokens of every prediction.

        Args:
            params: of the teacher.
            example: inputs and targets.
            parts: that the sequences are taken in, so that not all logits are there at once.
        """

        def best(states: Array) -> TopLogits:
            logits, ids = jax.lax.top_k(self.teacher.logits(params, states), self.config.top_k)
            return TopLogits(ids, logits)

        states = self._states(params, example)
        if parts == 1:
            return best(states)
        return joined(jax.lax.map(best, in_parts(states, parts)))

    def divergence(
        self,
        hidden: Float[Array, "B M D"],
        decoder: Decoder,
        *,
        hints: Hints,
        example: Example,
        parts: int = 1,
    ) -> LossSum:
        r"""$\tau^2 \, KL(P_T^\tau \| P_S^\tau)$ of the student's predictions (Qin et al., 2021).

        Only the student gets a gradient. In several parts the logits of one are there at a time,
        and are computed again for the gradient.

        Args:
            hidden: what the student predicts from.
            decoder: what turns that into logits.
            hints: what is known of the teacher, for these sequences.
            example: inputs and targets.
            parts: that the sequences are taken in.
        """
        tau = self.config.temperature
        known = hints if isinstance(hints, TopLogits) else self._states(hints, example)

        def of(part: Any) -> LossSum:
            known, hidden, weights = part
            if isinstance(known, TopLogits):
                soft = SoftTargets(known.logits, known.ids, tau)  # pyright: ignore
            else:
                logits = jax.lax.stop_gradient(self.teacher.logits(hints, known))  # pyright: ignore
                soft = SoftTargets(logits, None, tau)
            return soft.divergence(decoder.logits(hidden), weights=weights)

        rows = (known, hidden, example.weights)
        if parts == 1:
            return of(rows)

        def add(total: LossSum, part: Any) -> tuple[LossSum, None]:
            return total + jax.checkpoint(of)(part), None

        zero = LossSum(jnp.zeros(()), jnp.zeros(()))
        return jax.lax.scan(add, zero, in_parts(rows, parts))[0]

    def _states(self, params: Mapping[str, Any], example: Example) -> Float[Array, "B M D"]:
        """What the teacher predicts from, for what the student reads; without dropout."""
        states = self.teacher.hidden(params, example.input_ids)
        return jax.lax.stop_gradient(at_positions(states, example.positions))
