"""How far a grown model is from its source, on the user's own tokens."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Int

from b2b_jax.evaluate.layers import (
    LayerError,
    Stage,
    compared_entries,
    layer_errors,
    model_inputs,
    stages,
)
from b2b_jax.evaluate.norms import NormError, norm_errors, norm_parameters
from b2b_jax.growth import GrowthPlan
from b2b_jax.models import ModelConfig, build_model
from b2b_jax.train.losses import cross_entropy

IGNORED_LABEL = -100
NAMES = {
    "logits": "logits",
    "nsp": "next-sentence logits",
    "class": "class logits",
    "spans": "span logits",
    "pooled": "pooled output",
    "hidden": "hidden states",
}
AS_WIDE_AS_THE_MODEL = ("pooled", "hidden")


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
        norms: what every norm of the grown model adds by itself; empty without a plan by which it
            copies the source.
        agreement: share of predictions with the same most likely token; None without a
            language-model head.
        source_loss: nats per predicted token, of the source; None without such a head.
        grown_loss: the same of the grown model.
    """

    outputs: tuple[OutputError, ...]
    layers: tuple[LayerError, ...]
    norms: tuple[NormError, ...]
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

    def describe_norms(self, *, most: int = 5, above: float = 1e-5) -> str:
        """A text table: the norms that add most to the error, if any adds more than rounding."""
        worst = sorted(self.norms, key=lambda norm: -norm.relative_error)[:most]
        worst = [norm for norm in worst if norm.relative_error > above]
        width = max((len(norm.name) for norm in worst), default=0)
        return "\n".join(f"{norm.name:<{width}}  {norm.relative_error:9.2e}" for norm in worst)


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
    inputs, seen = model_inputs(batch)
    given = batch.get("labels") if isinstance(batch, Mapping) else None
    norms: list[NormError] = []
    add_norms: Callable[[Stage, np.ndarray], list[NormError]] | None = None
    if plan is not None and plan.method in ("fpi", "aki"):
        add_norms = functools.partial(
            norm_errors,
            params=norm_parameters(source_params, plan),
            grown=norm_parameters(grown_params, plan),
            epsilons=(source_config.layer_norm_eps, grown_config.layer_norm_eps),
            plan=plan,
        )
    states: list[list[np.ndarray]] = [[], []]
    outputs: list[dict[str, np.ndarray]] = []
    with jax.default_matmul_precision("highest"):
        for end, (cfg, params) in enumerate(
            ((source_config, source_params), (grown_config, grown_params))
        ):
            for stage in stages(build_model(cfg), params, inputs):
                if stage.prefix:
                    states[end].append(stage.output)
                else:
                    outputs.append(stage.output)
                if end == 0 and add_norms is not None:
                    norms += add_norms(stage, seen)
    before, after = outputs
    source_loss = grown_loss = agreement = None
    if "logits" in before and "logits" in after:
        labels = _labels(given, inputs, seen)
        causal = source_config.is_causal
        source_loss = _loss(before["logits"], labels, causal=causal)
        grown_loss = _loss(after["logits"], labels, causal=causal)
        top = [found["logits"][seen].argmax(-1) for found in (before, after)]
        agreement = float((top[0] == top[1]).mean())
    return VerifyReport(
        outputs=tuple(
            _output_error(name, before[name], after[name], seen=seen, plan=plan)
            for name in NAMES
            if name in before and name in after
        ),
        layers=layer_errors(states[0], states[1], seen, plan=plan),
        norms=tuple(norms),
        agreement=agreement,
        source_loss=source_loss,
        grown_loss=grown_loss,
    )


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
    if name in AS_WIDE_AS_THE_MODEL:
        places, indices = compared_entries(before.shape[-1], plan)
        before, after = before[..., indices], after[..., places]
    after = after[..., : before.shape[-1]]  # the logits of the source's own tokens
    error = np.abs(after - before)
    norm = max(float(np.linalg.norm(before)), 1e-30)
    return OutputError(NAMES[name], float(error.max()), float(np.linalg.norm(error)) / norm)
