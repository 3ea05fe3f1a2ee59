"""How far a grown model is from its source, on the user's own tokens."""

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from b2b_jax.evaluate.layers import LayerError, hidden_states, layer_errors
from b2b_jax.growth import GrowthPlan
from b2b_jax.models import Model, ModelConfig, build_model
from b2b_jax.train.losses import cross_entropy

IGNORED_LABEL = -100


@dataclass(frozen=True)
class OutputError:
    """How far one output is from that of the source.

    Attributes:
        name: "logits", "next-sentence logits", ..., or "hidden states" of a model without heads.
        largest: largest absolute difference.
        relative: norm of the difference over the norm of the source's output.
    """

    name: str
    largest: float
    relative: float


@dataclass(frozen=True)
class VerifyReport:
    """Differences between two models on one batch.

    Attributes:
        outputs: every output that both models have.
        layers: hidden states, embeddings first.
        agreement: share of predictions with the same most likely token; None without a
            language-model head.
        source_loss: nats per predicted token, of the source; None without such a head.
        grown_loss: the same of the grown model.
    """

    outputs: tuple[OutputError, ...]
    layers: tuple[LayerError, ...]
    agreement: float | None
    source_loss: float | None
    grown_loss: float | None

    @property
    def loss_gap(self) -> float | None:
        """Grown loss minus source loss, in nats."""
        if self.source_loss is None or self.grown_loss is None:
            return None
        return self.grown_loss - self.source_loss

    @property
    def max_error(self) -> float:
        """Largest absolute difference of any output."""
        return max(output.largest for output in self.outputs)

    @property
    def max_logit_error(self) -> float | None:
        """Largest absolute difference of any vocabulary logit."""
        return next((o.largest for o in self.outputs if o.name == "logits"), None)

    def __str__(self) -> str:
        parts = []
        if self.source_loss is not None:
            parts.append(
                f"loss {self.source_loss:.4f} -> {self.grown_loss:.4f} ({self.loss_gap:+.4f})"
            )
        parts += [
            f"{output.name}: largest error {output.largest:.2e}, relative {output.relative:.2e}"
            for output in self.outputs
        ]
        if self.agreement is not None:
            parts.append(f"same top token {100 * self.agreement:.1f} %")
        return ", ".join(parts)

    def describe_layers(self) -> str:
        """A text table: the relative error after the embeddings and after every layer."""
        width = max(len(layer.name) for layer in self.layers)
        return "\n".join(
            f"{layer.name:<{width}}  {layer.relative_error:9.2e}  against the source's "
            f"{layer.source_name}"
            for layer in self.layers
        )


def verify(
    source_config: ModelConfig,
    source_params: Mapping[str, Any],
    grown_config: ModelConfig,
    grown_params: Mapping[str, Any],
    batch: Mapping[str, Array | np.ndarray] | Int[Array | np.ndarray, "B T"],
    *,
    plan: GrowthPlan | None = None,
) -> VerifyReport:
    """Compare every output and hidden state of a grown model with those of its source.

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
        plan: says which entry of the residual stream copies which; without it the leading entries
            of wider hidden states are compared, which every mapping of this package keeps.

    Example:
        >>> import jax
        >>> from b2b_jax.growth import grow, plan_growth
        >>> from b2b_jax.models import build_model, preset
        >>> small = preset("bert-tiny").replace(num_hidden_layers=1)
        >>> large = small.replace(hidden_size=256, num_attention_heads=8, intermediate_size=1024)
        >>> params = build_model(small).init(jax.random.key(0))
        >>> grown = grow(params, plan_growth(small, large, method="fpi"))
        >>> report = verify(small, params, large, grown, jax.numpy.ones((1, 8), int))
        >>> report.max_error < 1e-4
        True
    """
    fields = dict(batch) if isinstance(batch, Mapping) else {"input_ids": batch}
    inputs = {
        name: jnp.asarray(fields[name])
        for name in ("input_ids", "attention_mask", "token_type_ids")
        if fields.get(name) is not None
    }
    seen = np.ones(inputs["input_ids"].shape, bool)
    if "attention_mask" in inputs:
        seen = np.asarray(inputs["attention_mask"]) > 0
    with jax.default_matmul_precision("highest"):
        before, states = _run(build_model(source_config), source_params, inputs)
        after, grown_states = _run(build_model(grown_config), grown_params, inputs)
    source_loss = grown_loss = agreement = None
    if "logits" in before and "logits" in after:
        labels = _labels(fields.get("labels"), inputs, seen)
        causal = source_config.is_causal
        source_loss = _loss(before["logits"], labels, causal=causal)
        grown_loss = _loss(after["logits"], labels, causal=causal)
        top = [outputs["logits"][seen].argmax(-1) for outputs in (before, after)]
        agreement = float((top[0] == top[1]).mean())
    return VerifyReport(
        outputs=tuple(
            _output_error(name, before[name], after[name], seen=seen, plan=plan)
            for name in before
            if name in after
        ),
        layers=layer_errors(states, grown_states, seen, plan=plan),
        agreement=agreement,
        source_loss=source_loss,
        grown_loss=grown_loss,
    )


def _run(
    model: Model, params: Mapping[str, Any], inputs: Mapping[str, Array]
) -> tuple[dict[str, np.ndarray], list[np.ndarray]]:
    """Every output of a model by name, and its hidden states."""
    states = [np.asarray(state) for state in hidden_states(model, params, inputs)]
    outputs = _outputs(model, params, jnp.asarray(states[-1]))
    return {name: np.asarray(output) for name, output in outputs.items()}, states


@functools.partial(jax.jit, static_argnums=0)
def _outputs(model: Model, params: Any, last: Array) -> dict[str, Array]:
    heads, outputs = model.cfg.heads, {}
    if {"mlm", "lm"} & set(heads):
        outputs["logits"] = model.logits(params, last)
    if "nsp" in heads:
        outputs["next-sentence logits"] = model.next_sentence_logits(params, last)
    if "classifier" in heads:
        outputs["class logits"] = model.class_logits(params, last)
    if "qa" in heads:
        outputs["span logits"] = model.span_logits(params, last)
    if "pooler" in heads and not outputs:
        outputs["pooled output"] = model.pooled(params, last)
    if not {"mlm", "lm", "nsp", "classifier", "qa"} & set(heads):
        outputs["hidden states"] = model.final_norm(params, last)
    return outputs


def _labels(given: Any, inputs: Mapping[str, Array], seen: np.ndarray) -> np.ndarray:
    if given is not None:
        return np.asarray(given)
    return np.where(seen, np.asarray(inputs["input_ids"]), IGNORED_LABEL)


def _loss(logits: np.ndarray, labels: np.ndarray, *, causal: bool) -> float:
    if causal:
        logits, labels = logits[:, :-1], labels[:, 1:]
    counted = labels != IGNORED_LABEL
    loss = jax.jit(cross_entropy)(
        jnp.asarray(logits),
        jnp.asarray(np.where(counted, labels, 0)),
        weights=jnp.asarray(counted, jnp.float32),
    )
    return float(loss.mean)


def _output_error(
    name: str,
    before: np.ndarray,
    after: np.ndarray,
    *,
    seen: np.ndarray,
    plan: GrowthPlan | None,
) -> OutputError:
    if before.shape[:2] == seen.shape and before.ndim == 3:
        before, after = before[seen], after[seen]
    if name in ("hidden states", "pooled output"):  # as wide as the model
        if plan is not None:
            before = before[..., plan.maps["embed"].indices]
        after = after[..., : before.shape[-1]]
    error = np.abs(after - before)
    norm = max(float(np.linalg.norm(before)), 1e-30)
    return OutputError(name, float(error.max()), float(np.linalg.norm(error)) / norm)
