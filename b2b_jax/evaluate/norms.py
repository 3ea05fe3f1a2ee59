"""Which LayerNorm notices a growth."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from b2b_jax.evaluate.layers import Stage
from b2b_jax.growth import GrowthPlan
from b2b_jax.growth.width import reindex
from b2b_jax.tree import flatten


@dataclass(frozen=True)
class NormError:
    """What one norm of a grown model adds to the error by itself.

    Attributes:
        name: "layer 3 attention_norm", "embeddings/norm", ...
        relative_error: of its output for the source's own input at the grown width, against the
            source's output.
    """

    name: str
    relative_error: float


def norm_errors(
    stage: Stage,
    seen: np.ndarray,
    *,
    params: Mapping[str, np.ndarray],
    grown: Mapping[str, np.ndarray],
    epsilons: tuple[float, float],
    plan: GrowthPlan,
) -> list[NormError]:
    """The errors of the grown norms that stem from the norms of one stage of the source.

    Every norm gets exactly what the source's norm reads, copied as the plan copies the residual
    stream: what then differs is its own doing, not that of the layers below.

    Args:
        stage: of the source.
        seen: bool ``[B, T]``, False where a token is padding.
        params: path -> parameter, of the source.
        grown: the same of the grown model.
        epsilons: of the norms of source and grown model.
        plan: what grew one into the other.
    """
    found = []
    for path, x in stage.norm_inputs.items():
        scale, bias = _parameters(params, path, stage.layer)
        (axis,) = plan.axes[f"{path}/scale"].produces
        mapped = plan.maps[axis]
        tokens = x[seen].astype(np.float64)
        expected = reindex(_norm(tokens, scale, bias, epsilons[0]), mapped, axis=1)
        if axis in plan.axes[f"{path}/scale"].absorbs:
            expected = expected * mapped.weights
        expected = expected[:, mapped.is_copy]
        wide = np.asarray(reindex(tokens, mapped, axis=1))
        for target in _targets(stage.layer, plan):
            scale, bias = _parameters(grown, path, target)
            error = _norm(wide, scale, bias, epsilons[1])[:, mapped.is_copy] - expected
            name = path if target is None else f"layer {target} {path.rpartition('/')[2]}"
            size = max(float(np.linalg.norm(expected)), 1e-30)
            found.append(NormError(name, float(np.linalg.norm(error)) / size))
    return found


def _targets(layer: int | None, plan: GrowthPlan) -> list[int] | list[None]:
    """The layers of the target that copy a layer of the source."""
    return (
        [None] if layer is None else np.flatnonzero(plan.maps["layers"].indices == layer).tolist()
    )


def _parameters(
    params: Mapping[str, np.ndarray], path: str, layer: int | None
) -> tuple[np.ndarray, np.ndarray]:
    scale, bias = params[f"{path}/scale"], params[f"{path}/bias"]
    return (scale, bias) if layer is None else (scale[layer], bias[layer])


def _norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, epsilon: float) -> np.ndarray:
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt((x**2).mean(-1, keepdims=True) + epsilon) * scale + bias


def norm_parameters(params: Mapping[str, Any], plan: GrowthPlan) -> dict[str, np.ndarray]:
    """Scales and biases of all norms, by path."""
    return {
        path: np.asarray(leaf, np.float64)
        for path, leaf in flatten(params).items()
        if plan.axes[path].role in ("norm_scale", "norm_bias")
    }
