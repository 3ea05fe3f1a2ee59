"""Choosing how to grow to an uneven width from what a trained model does on some text."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Float, Int

from b2b_jax.evaluate.layers import model_inputs, stages
from b2b_jax.growth import NormCalibration, calibrate_norms
from b2b_jax.models import Model, ModelConfig, build_model, with_weighted_norms
from b2b_jax.tree import flatten, unflatten

MAX_TOKENS = 2048
FIT_TOKENS = 512
FIT_STEPS = 40
FIT_RATE = 5e-3


def calibrate(
    cfg: ModelConfig,
    params: Mapping[str, Any],
    batch: Mapping[str, Array | np.ndarray] | Int[Array | np.ndarray, "B T"],
    *,
    hidden_size: int,
) -> NormCalibration:
    r"""Choose what to repeat at an uneven width, and a factor for every norm, from some text.

    First `calibrate_norms` chooses the entries whose extra copies the norms notice least. Then the
    factors are fitted: Adam lowers the Kullback-Leibler divergence between the predictions of the
    source and of the grown model (the relative square error of hidden states where there is no
    language-model head). The grown model is not built for that: at the source's size, with copy
    counts as weights in the statistics of its norms, the source computes the same.

    Args:
        cfg: config of the trained model.
        params: its parameters.
        batch: int ``[B, T]`` token ids of calibration text, or a mapping with ``input_ids`` and, if
            wanted, ``attention_mask`` and ``token_type_ids``. At most 2048 tokens are used, 512 of
            them for the fit.
        hidden_size: width of the target.

    Returns:
        what ``plan_growth(..., norm=...)`` takes.

    Raises:
        GrowthError: if there are no two tokens.

    Example:
        >>> import b2b_jax as b2b
        >>> small = b2b.preset("bert-tiny").replace(num_hidden_layers=1)
        >>> large = small.replace(hidden_size=192, num_attention_heads=6, intermediate_size=768)
        >>> params = b2b.build_model(small).init(jax.random.key(0))
        >>> ids = jax.random.randint(jax.random.key(1), (4, 16), 0, small.vocab_size)
        >>> found = calibrate(small, params, ids, hidden_size=192)
        >>> b2b.plan_growth(small, large, method="fpi", norm=found).norm
        'calibrated'
    """
    inputs, seen = model_inputs(batch)
    # Rows with most tokens first: none of those that are used is all padding.
    rows = np.argsort(-seen.sum(1), kind="stable")[: max(1, MAX_TOKENS // seen.shape[1])]
    inputs, seen = {name: field[rows] for name, field in inputs.items()}, seen[rows]
    model = build_model(cfg)
    read: dict[str, list[np.ndarray]] = {}
    with jax.default_matmul_precision("highest"):
        for stage in stages(model, params, inputs):
            for path, x in stage.norm_inputs.items():
                read.setdefault(f"{path}/scale", []).append(x[seen])
        found = calibrate_norms(
            {path: np.stack(layers) for path, layers in read.items()}, target=hidden_size
        )
        if found.grown.is_even:
            return found
        few = max(1, FIT_TOKENS // seen.shape[1])
        fitted = {name: field[:few] for name, field in inputs.items()}
        factors = _fitted(model, params, fitted, jnp.asarray(seen[:few]), found)
    scales = {path: np.asarray(leaf, float).tolist() for path, leaf in factors.items()}
    return dataclasses.replace(found, scales=scales)


def _fitted(
    model: Model,
    params: Mapping[str, Any],
    inputs: Mapping[str, Array],
    seen: Array,
    found: NormCalibration,
) -> dict[str, Float[Array, " layers"]]:
    """Factors of the norms that bring the grown model's predictions nearest to the source's."""
    weights = jnp.asarray(found.grown.counts / found.grown.target_size, jnp.float32)
    start = {path: jnp.asarray(factors) for path, factors in found.scales.items()}

    def predict(params: Any) -> Array:
        hidden = model.hidden(params, **inputs)
        if {"mlm", "lm"} & set(model.cfg.heads):
            return jax.nn.log_softmax(model.logits(params, hidden))
        return model.final_norm(params, hidden)

    wanted = jax.jit(predict)(params)

    def distance(factors: dict[str, Array], params: Any, wanted: Array) -> Array:
        flat = flatten(params)
        for path, factor in factors.items():
            flat[path] = flat[path] * (factor[:, None] if flat[path].ndim == 2 else factor[0])
        given = with_weighted_norms(predict, weights)(unflatten(flat))
        if {"mlm", "lm"} & set(model.cfg.heads):
            error, size = (jnp.exp(wanted) * (wanted - given)).sum(-1), jnp.ones(seen.shape)
        else:
            error, size = ((given - wanted) ** 2).sum(-1), (wanted**2).sum(-1)
        return (error * seen).sum() / (size * seen).sum()

    optimizer = optax.adam(optax.cosine_decay_schedule(FIT_RATE, FIT_STEPS))

    @jax.jit
    def step(factors: Any, state: Any, params: Any, wanted: Array) -> tuple[Any, Any]:
        updates, state = optimizer.update(jax.grad(distance)(factors, params, wanted), state)
        return optax.apply_updates(factors, updates), state

    factors, state = start, optimizer.init(start)
    for _ in range(FIT_STEPS):
        factors, state = step(factors, state, params, wanted)
    return factors
