"""Choosing what to repeat at an uneven width, so that every LayerNorm notices least."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from b2b_jax.growth.errors import GrowthError
from b2b_jax.growth.maps import IndexMap


@dataclass(frozen=True)
class NormCalibration:
    """What `calibrate_norms` found, for ``plan_growth(..., norm=...)``.

    Attributes:
        grown: the map of the normed axis.
        scales: path of a norm's scale -> factor for every layer, or one.
    """

    grown: IndexMap
    scales: dict[str, list[float]]


def calibrate_norms(
    inputs: Mapping[str, Float[np.ndarray, "layers tokens width"]],
    *,
    target: int,
) -> NormCalibration:
    r"""Choose the entries of the residual stream to repeat, and a factor for every norm.

    At a width that is no multiple some entries are copied once more than others, and a norm over
    the copies sees another mean and variance. With :math:`z` the normalised values of a token in
    the source, and :math:`S` the set of entries with an extra copy, those are over :math:`D`
    entries, of which :math:`kd` are whole copies,

    $$\mu = \frac{1}{D}\sum_{j \in S} z_j, \qquad
      v = \frac{1}{D}\Big(kd + \sum_{j \in S} z_j^2\Big) - \mu^2$$

    The output is off by :math:`\mu` and, after the best constant factor, by
    :math:`z (v - \bar v) / 2 \bar v`, before the norm's own scale. The mean squares of both are
    quadratic in the indicator of S: one matrix tells the error of every set. Entries are swapped
    in and out as long as that lowers it.

    Args:
        inputs: path of a norm's scale -> what the source's norm reads on calibration text.
        target: size of the axis in the target.

    Raises:
        GrowthError: if there is no norm, or no two tokens.

    Example:
        >>> rng = np.random.default_rng(0)
        >>> x = rng.normal(size=(1, 50, 8)) * np.arange(8, 0, -1)
        >>> found = calibrate_norms({"norm/scale": x}, target=12)
        >>> int(found.grown.counts.sum()), len(found.scales["norm/scale"])
        (12, 1)
    """
    widths = {x.shape[2] for x in inputs.values()}
    if len(widths) != 1 or min(x.shape[1] for x in inputs.values()) < 2:
        raise GrowthError(
            "calibration needs at least one norm, all of one width, and two tokens of text; found "
            f"{len(inputs)} norms of the widths {sorted(widths)}"
        )
    if target < min(widths):
        raise GrowthError(f"target: found {target}, expected at least {min(widths)}")
    normed = {path: _normalised(x) for path, x in inputs.items()}
    width = next(iter(normed.values())).shape[2]
    whole, extra = divmod(target, width)
    start = np.arange(width) < extra
    chosen = _swapped(_pair_errors(normed), start)
    counts = whole + chosen
    is_even = bool((counts == counts[0]).all())
    factors = {
        path: [1.0 if is_even else _factor(z, counts) for z in layers]
        for path, layers in normed.items()
    }
    indices = np.concatenate([np.tile(np.arange(width), whole), np.flatnonzero(chosen)])
    return NormCalibration(IndexMap(indices, width), factors)


def norm_error(
    inputs: Mapping[str, Float[np.ndarray, "layers tokens width"]], found: NormCalibration
) -> float:
    """Mean square of what every norm is off by at the grown width, before its own scale.

    Args:
        inputs: path of a norm's scale -> what the source's norm reads.
        found: the map, and factors for the same norms.
    """
    errors = []
    for path, x in inputs.items():
        for z, factor in zip(_normalised(x), found.scales[path], strict=True):
            mean, variance = _statistics(z, found.grown.counts)
            grown = factor * (z - mean[:, None]) / np.sqrt(variance)[:, None]
            errors.append(((grown - z) ** 2).mean())
    return float(np.mean(errors))


def _normalised(x: np.ndarray) -> np.ndarray:
    x = np.asarray(x, np.float64)
    x = x - x.mean(-1, keepdims=True)
    return x / np.maximum(x.std(-1, keepdims=True), 1e-12)


def _pair_errors(normed: Mapping[str, np.ndarray]) -> np.ndarray:
    """What two entries that are both repeated add to the error: ``[width, width]``."""
    total = 0.0
    for layers in normed.values():
        for z in layers:
            squares = z**2 - (z**2).mean(0)
            total = total + (z.T @ z + squares.T @ squares / 4) / len(z)
    return np.asarray(total)


def _swapped(matrix: np.ndarray, start: np.ndarray) -> np.ndarray:
    """The set of as many entries whose sum over the matrix no single swap lowers."""
    chosen = start.copy()
    if chosen.all() or not chosen.any():
        return chosen
    while True:
        inside, outside = np.flatnonzero(chosen), np.flatnonzero(~chosen)
        sums, own = matrix @ chosen, np.diag(matrix)
        change = (own - 2 * sums)[inside][:, None] + (own + 2 * sums)[outside][None, :]
        change -= 2 * matrix[np.ix_(inside, outside)]
        best = np.unravel_index(change.argmin(), change.shape)
        if change[best] >= -1e-9 * own.mean():
            return chosen
        chosen[inside[best[0]]], chosen[outside[best[1]]] = False, True


def _statistics(z: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of every token over the copies."""
    weights = counts / counts.sum()
    mean = z @ weights
    return mean, (z**2) @ weights - mean**2


def _factor(z: np.ndarray, counts: np.ndarray) -> float:
    """The factor that brings the grown norm's output nearest to the source's: least squares."""
    z = z[(z**2).mean(-1) > 0.5]  # not of tokens whose entries are all equal
    if not len(z):
        return 1.0
    mean, variance = _statistics(z, counts)
    return float((1 / np.sqrt(variance)).mean() / ((1 + mean**2) / variance).mean())
