"""Growing one parameter along its named axes: gather, rescale, take from the upper layer."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Array, Float, Shaped

from b2b_jax.axes import Axes
from b2b_jax.growth.maps import IndexMap

Maps = Mapping[str, IndexMap]
MAX_SLICES = 16
AnyArray = Array | np.ndarray
"""Of JAX, traced or not, or of numpy: the functions below compute with the one they are given."""


def namespace(leaf: Any) -> Any:
    """`numpy` or `jax.numpy`, as the array standard names it."""
    return leaf.__array_namespace__()


def along(numbers: np.ndarray, axis: int, ndim: int) -> np.ndarray:
    """One number per entry of an axis, shaped to broadcast over the others."""
    return numbers.reshape([-1 if dimension == axis else 1 for dimension in range(ndim)])


def gather(
    leaf: Shaped[AnyArray, "..."], indices: np.ndarray, *, axis: int
) -> Shaped[AnyArray, "..."]:
    """Take entries along one axis; runs of neighbours are copied as slices.

    A cyclic map is a handful of runs, and slices stream through memory where an index gather
    does not.
    """
    starts = np.flatnonzero(np.diff(indices, prepend=indices[:1] - 2) != 1)
    if len(starts) > MAX_SLICES:
        return namespace(leaf).take(leaf, indices, axis=axis)
    bounds = [*starts, len(indices)]
    runs = [(indices[a], b - a) for a, b in itertools.pairwise(bounds)]
    if runs == [(0, leaf.shape[axis])]:
        return leaf
    before = (slice(None),) * axis
    return namespace(leaf).concatenate(
        [leaf[*before, start : start + length] for start, length in runs], axis=axis
    )


def mean(leaf: Float[AnyArray, "..."], *, axis: int) -> Float[AnyArray, "..."]:
    """The mean along one axis, which is kept with size one.

    Halves are added until one entry is left: an order that no compiler changes.
    """
    size, before = leaf.shape[axis], (slice(None),) * axis
    total = leaf
    while (length := total.shape[axis]) > 1:
        half = length // 2
        added = total[*before, :half] + total[*before, half : 2 * half]
        rest = total[*before, 2 * half :]
        total = namespace(leaf).concatenate([added, rest], axis=axis) if length % 2 else added
    return total * np.float32(1 / size)


def reindex(leaf: Float[AnyArray, "..."], grown: IndexMap, *, axis: int) -> Float[AnyArray, "..."]:
    """Apply a map along one axis: copies, entries between two neighbours, and means of all.

    Copies and means are the same jitted, eager and in numpy; of entries between neighbours a
    compiler may round one product less.
    """
    if grown.is_identity:
        return leaf
    copied = ~grown.is_mean
    parts = namespace(leaf)
    lower = gather(leaf, np.where(copied, grown.indices, 0), axis=axis)
    if grown.fractions is not None:
        next_ones = np.minimum(np.where(copied, grown.indices, 0) + 1, grown.source_size - 1)
        upper = gather(leaf, next_ones, axis=axis)
        fractions = along(grown.fractions, axis, leaf.ndim)
        lower = parts.where(fractions > 0, lower * (1 - fractions) + upper * fractions, lower)
    if copied.all():
        return lower
    return parts.where(along(copied, axis, leaf.ndim), lower, mean(leaf, axis=axis))


def rescale(
    leaf: Float[AnyArray, "..."], weights: np.ndarray, *, axis: int
) -> Float[AnyArray, "..."]:
    """Multiply every entry along one axis by its part of the source's weight (the 1/C of Eq. 7).

    Compilers differ in how they divide by a constant, but not in how they multiply: with the
    reciprocal, jitted, eager and numpy growth agree to the last bit.
    """
    if (weights == 1).all():
        return leaf
    return leaf * namespace(leaf).asarray(along(weights.astype(leaf.dtype), axis, leaf.ndim))


def expand(leaf: Float[AnyArray, "..."], axes: Axes, maps: Maps) -> Float[AnyArray, "..."]:
    r"""EXPN of bert2BERT (Eq. 7, 8, 9 and 13): gather along every axis, divide along consumed ones.

    $$U_{(i,j)} = \frac{1}{C_{g_{in}(i)}} W_{(g_{in}(i),\, g_{out}(j))}$$

    Nothing is divided along produced axes, so biases, norms and embeddings are copied; the norm in
    front of a tied decoder is divided along the axis that it absorbs. Entries of the residual
    stream that are the mean of all others are zero behind a norm: its bias is zero there, and its
    scale makes up for the variance that they take away (LEMON, Wang et al., 2024).

    Args:
        leaf: the source parameter, one dimension per name in ``axes``.
        axes: its named axes.
        maps: axis name -> index map; an axis without a map stays as it is. The ``layers`` axis is
            grown by `grow`, after the width.
    """
    for dimension, (name, divided) in enumerate(zip(axes.names, axes.divided, strict=True)):
        if name not in maps or name == "layers":
            continue
        grown = maps[name]
        leaf = reindex(leaf, grown, axis=dimension)
        if divided:
            leaf = rescale(leaf, grown.weights, axis=dimension)
        if grown.is_mean.any() and axes.role in ("norm_scale", "norm_bias"):
            if axes.role == "norm_bias":
                factors = np.where(grown.is_mean, 0, 1)
            else:
                factors = np.full(grown.target_size, grown.variance_ratio**0.5)
            leaf = rescale(leaf, factors, axis=dimension)
    return leaf


def take_from_upper(
    widened: Float[AnyArray, "layers ..."], axes: Axes, maps: Maps, *, donated: Sequence[str]
) -> Float[AnyArray, "layers ..."]:
    r"""AKI (bert2BERT, Eq. 16): new entries of the donated axes come from the layer above.

    $$U^l_{(*,j)} = \tilde U^l_{(*,j)}\; (j \le d^s),\qquad
      \tilde U^{l+1}_{(*,g(j))}\; (j > d^s)$$

    The donor is the source's own layer l+1, expanded in its consumed axes (Eq. 15). The last layer
    has none above it and keeps its own entries, which is FPI.

    Args:
        widened: the parameter after `expand`, with the source's number of layers in front.
        axes: its named axes.
        maps: axis name -> index map, identity on the first source-size entries.
        donated: the axes along which entries beyond the source's size are taken from above.
    """
    layers = widened.shape[0]
    upper = gather(widened, np.minimum(np.arange(layers) + 1, layers - 1), axis=0)
    return fill_from(upper, widened, axes, maps, donated=donated)


def fill_from(
    upper: Float[AnyArray, "layers ..."],
    own: Float[AnyArray, "layers ..."],
    axes: Axes,
    maps: Maps,
    *,
    donated: Sequence[str],
) -> Float[AnyArray, "layers ..."]:
    """The entries of ``own`` up to the source's size along the donated axes, else of ``upper``."""
    is_new = np.zeros((1,) * own.ndim, bool)
    for dimension, name in enumerate(axes.names):
        if name in donated and name in maps:
            grown = maps[name]
            is_new = is_new | along(grown.is_new_copy, dimension, own.ndim)
    return namespace(own).where(is_new, upper, own)
