"""How far a grown model is from its source, on the user's own tokens."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from b2b_jax.models import ModelConfig, build_model
from b2b_jax.train.losses import LossSum, cross_entropy

IGNORED_LABEL = -100


@dataclass(frozen=True)
class VerifyReport:
    """Differences between two models on one batch.

    Attributes:
        max_logit_error: largest absolute difference of any logit.
        mean_logit_error: mean absolute difference.
        relative_logit_error: norm of the difference over the norm of the source's logits.
        agreement: share of predictions with the same most likely token.
        source_loss: nats per predicted token, of the source.
        grown_loss: nats per predicted token, of the grown model.
    """

    max_logit_error: float
    mean_logit_error: float
    relative_logit_error: float
    agreement: float
    source_loss: float
    grown_loss: float

    @property
    def loss_gap(self) -> float:
        """Grown loss minus source loss, in nats."""
        return self.grown_loss - self.source_loss

    def __str__(self) -> str:
        return (
            f"loss {self.source_loss:.4f} -> {self.grown_loss:.4f} ({self.loss_gap:+.4f})   "
            f"logits: largest error {self.max_logit_error:.2e}, relative "
            f"{self.relative_logit_error:.2e}, same top token {100 * self.agreement:.1f} %"
        )


def verify(
    source_config: ModelConfig,
    source_params: Mapping[str, Any],
    grown_config: ModelConfig,
    grown_params: Mapping[str, Any],
    batch: Mapping[str, Array] | Int[Array, "B T"],
) -> VerifyReport:
    """Compare logits and losses of a grown model with those of its source.

    Computed without dropout, in float32 with the highest matrix-product precision, so that what is
    left is due to the growth. Nothing is hidden: at uneven widths the LayerNorm gap shows here.

    Args:
        source_config: config of the source.
        source_params: its parameters.
        grown_config: config of the grown model.
        grown_params: its parameters.
        batch: int ``[B, T]`` token ids, or a mapping with ``input_ids`` and, if wanted,
            ``attention_mask``, ``token_type_ids`` and ``labels`` (-100 is ignored). Without labels
            a causal model is scored on the next token, a masked one on the tokens it sees.

    Example:
        >>> import jax
        >>> from b2b_jax.growth import grow, plan_growth
        >>> from b2b_jax.models import build_model, preset
        >>> small = preset("bert-tiny").replace(num_hidden_layers=1)
        >>> large = small.replace(hidden_size=256, num_attention_heads=8, intermediate_size=1024)
        >>> params = build_model(small).init(jax.random.key(0))
        >>> grown = grow(params, plan_growth(small, large, method="fpi"))
        >>> verify(small, params, large, grown, jax.numpy.ones((1, 8), int)).max_logit_error < 1e-4
        True
    """
    fields = dict(batch) if isinstance(batch, Mapping) else {"input_ids": batch}
    labels = fields.pop("labels", None)
    inputs = {
        name: jnp.asarray(fields[name])
        for name in ("input_ids", "attention_mask", "token_type_ids")
        if fields.get(name) is not None
    }
    causal = source_config.family == "gpt2"
    if labels is None:
        labels = inputs["input_ids"]
        if "attention_mask" in inputs:
            labels = jnp.where(inputs["attention_mask"] > 0, labels, IGNORED_LABEL)
    labels = jnp.asarray(labels)

    def loss(logits: Array) -> LossSum:
        targets = labels
        if causal:
            logits, targets = logits[:, :-1], targets[:, 1:]
        counted = targets != IGNORED_LABEL
        return cross_entropy(
            logits, jnp.where(counted, targets, 0), weights=counted.astype(jnp.float32)
        )

    with jax.default_matmul_precision("highest"):
        before = build_model(source_config).apply(source_params, **inputs)
        after = build_model(grown_config).apply(grown_params, **inputs)
    source_loss, grown_loss = float(loss(before).mean), float(loss(after).mean)
    if "attention_mask" in inputs:
        seen = inputs["attention_mask"] > 0
        before, after = before[seen], after[seen]
    error = jnp.abs(after - before)
    return VerifyReport(
        max_logit_error=float(error.max()),
        mean_logit_error=float(error.mean()),
        relative_logit_error=float(jnp.linalg.norm(error) / jnp.linalg.norm(before)),
        agreement=float((before.argmax(-1) == after.argmax(-1)).mean()),
        source_loss=source_loss,
        grown_loss=grown_loss,
    )
