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


def _namespace(leaf: Any) -> Any:
    """`numpy` or `jax.numpy`, as the array standard names it."""
    return leaf.__array_namespace__()


def gather(
    leaf: Shaped[AnyArray, "..."], indices: np.ndarray, *, axis: int
) -> Shaped[AnyArray, "..."]:
    """Take entries along one axis; runs of neighbours are copied as slices.

    A cyclic map is a handful of runs, and slices stream through memory where an index gather
    does not.
    """
    starts = np.flatnonzero(np.diff(indices, prepend=indices[:1] - 2) != 1)
    if len(starts) > MAX_SLICES:
        return _namespace(leaf).take(leaf, indices, axis=axis)
    bounds = [*starts, len(indices)]
    runs = [(indices[a], b - a) for a, b in itertools.pairwise(bounds)]
    if runs == [(0, leaf.shape[axis])]:
        return leaf
    before = (slice(None),) * axis
    return _namespace(leaf).concatenate(
        [leaf[*before, start : start + length] for start, length in runs], axis=axis
    )


def rescale(
    leaf: Float[AnyArray, "..."], copies: np.ndarray, *, axis: int
) -> Float[AnyArray, "..."]:
    """Divide every entry along one axis by its copy count (the 1/C of Eq. 7)."""
    if (copies == 1).all():
        return leaf
    shape = [1] * leaf.ndim
    shape[axis] = len(copies)
    # Compilers differ in how they divide by a constant, but not in how they multiply: with the
    # reciprocal, jitted, eager and numpy growth agree to the last bit.
    reciprocals = (1 / copies.astype(leaf.dtype)).reshape(shape)
    return leaf * _namespace(leaf).asarray(reciprocals)


def expand(leaf: Float[AnyArray, "..."], axes: Axes, maps: Maps) -> Float[AnyArray, "..."]:
    r"""EXPN of bert2BERT (Eq. 7, 8, 9 and 13): gather along every axis, divide along consumed ones.

    $$U_{(i,j)} = \frac{1}{C_{g_{in}(i)}} W_{(g_{in}(i),\, g_{out}(j))}$$

    Nothing is divided along produced axes, so biases, norms and embeddings are copied; the norm in
    front of a tied decoder is divided along the axis that it absorbs.

    Args:
        leaf: the source parameter, one dimension per name in ``axes``.
        axes: its named axes.
        maps: axis name -> index map; an axis without a map stays as it is. The ``layers`` axis is
            grown by `grow`, after the width.
    """
    for dimension, (name, divided) in enumerate(zip(axes.names, axes.divided, strict=True)):
        if name in maps and name != "layers":
            leaf = gather(leaf, maps[name].indices, axis=dimension)
            if divided:
                leaf = rescale(leaf, maps[name].copies, axis=dimension)
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
            shape = [1] * own.ndim
            shape[dimension] = grown.target_size
            beyond = np.arange(grown.target_size) >= grown.source_size
            is_new = is_new | beyond.reshape(shape)
    return _namespace(own).where(is_new, upper, own)
