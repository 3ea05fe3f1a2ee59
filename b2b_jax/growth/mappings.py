"""Ways to choose what every entry of a grown axis copies: the makers of index maps."""

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np

from b2b_jax.growth.errors import GrowthError
from b2b_jax.growth.maps import MEAN, IndexMap

Mapping = Literal["cyclic", "balanced", "uniform"]
AxisMapping = Literal["cyclic", "balanced", "uniform", "mean", "interpolate"]
Split = Literal["equal", "unequal"]


def cyclic(source: int, target: int) -> IndexMap:
    """Copy ``i mod source``: counts differ by at most one, and not at all at integer factors.

    Example:
        >>> cyclic(2, 5).indices.tolist()
        [0, 1, 0, 1, 0]
    """
    return IndexMap(np.arange(target) % source, source)


def balanced(source: int, target: int, rng: np.random.Generator) -> IndexMap:
    """Identity, then whole random permutations: random, with counts that differ by at most one."""
    rounds = -(-(target - source) // source)
    new = np.concatenate([np.empty(0, int), *(rng.permutation(source) for _ in range(rounds))])
    return IndexMap(np.concatenate([np.arange(source), new[: target - source]]), source)


def uniform(source: int, target: int, rng: np.random.Generator) -> IndexMap:
    """Identity, then uniform sampling with replacement: bert2BERT's Eq. 5 and 6 as written.

    Copy counts differ even at integer factors, so that LayerNorm statistics shift.
    """
    return IndexMap(
        np.concatenate([np.arange(source), rng.integers(source, size=target - source)]), source
    )


def mean_of_all(source: int, target: int) -> IndexMap:
    """Identity, and every new entry the mean of all: what new tokens start from."""
    return IndexMap(np.append(np.arange(source), np.full(target - source, MEAN)), source)


def mean_padded(source: int, target: int) -> IndexMap:
    """Whole copies, and the mean of all where no whole copy fits (LEMON, Wang et al., 2024).

    Copy counts are even at any width, so that a pre-norm model can be grown exactly.

    Example:
        >>> mean_padded(2, 5).indices.tolist()
        [0, 1, 0, 1, -1]
    """
    whole, rest = divmod(target, source)
    return IndexMap(np.append(np.tile(np.arange(source), whole), np.full(rest, MEAN)), source)


def mean_pad_epsilon(epsilon: float, source: int, target: int) -> float:
    """The epsilon of norms in a model padded by `mean_padded`, whose variance is that much less.

    Example:
        >>> mean_pad_epsilon(3e-6, 2, 3)
        2e-06
    """
    return epsilon * (target // source * source) / target


def interpolated(source: int, target: int) -> IndexMap:
    """Entries spread evenly from the first to the last, linear between their two neighbours.

    Example:
        >>> interpolated(3, 5).fractions.tolist()
        [0.0, 0.5, 0.0, 0.5, 0.0]
    """
    steps = max(target - 1, 1)
    lower, rest = np.divmod(np.arange(target) * (source - 1), steps)
    return IndexMap(lower, source, fractions=rest / steps)


def after_fixed(grown: IndexMap, fixed: int) -> IndexMap:
    """A map behind ``fixed`` entries that stay where they are.

    Example:
        >>> after_fixed(cyclic(3, 6), 2).indices.tolist()
        [0, 1, 2, 3, 4, 2, 3, 4]
    """
    start = np.arange(fixed)
    shifted = np.where(grown.is_mean, MEAN, grown.indices + fixed)
    fractions = grown.fractions
    if fractions is not None:
        fractions = np.append(np.zeros(fixed), fractions)
    return IndexMap(np.append(start, shifted), grown.source_size + fixed, fractions=fractions)


def with_donors(source: int, donors: Sequence[int]) -> IndexMap:
    """Identity, and every new entry a copy of the entry that is given for it.

    Example:
        >>> with_donors(3, [0, 0, 2]).indices.tolist()
        [0, 1, 2, 0, 0, 2]
    """
    given = np.asarray(donors)
    if given.ndim != 1 or (given.size and given.dtype.kind not in "iu"):
        raise GrowthError(f"donors: found {donors!r}, expected a list of whole numbers")
    if given.size and not 0 <= given.min() <= given.max() < source:
        raise GrowthError(
            f"donors: found {given.min()} to {given.max()}, expected 0 to {source - 1}"
        )
    return IndexMap(np.append(np.arange(source), given.astype(int)), source)


Maker = Callable[[int, int, np.random.Generator], IndexMap]
MAPPINGS: dict[Mapping, Maker] = {
    "cyclic": lambda source, target, rng: cyclic(source, target),
    "balanced": balanced,
    "uniform": uniform,
}
AXIS_MAPPINGS: dict[AxisMapping, Maker] = {
    **MAPPINGS,
    "mean": lambda source, target, rng: mean_of_all(source, target),
    "interpolate": lambda source, target, rng: interpolated(source, target),
}
"""The mappings of width, and those that suit lists of entries: vocabulary, positions, types."""


def split_unequally(grown: IndexMap, rng: np.random.Generator) -> IndexMap:
    """The same map with random shares, each within a factor of three of its siblings.

    Copies then get different gradients, and part; their sum stays what it was.
    """
    if (grown.counts <= 1).all():
        return grown
    copied = ~grown.is_mean
    drawn = rng.uniform(0.5, 1.5, grown.target_size)
    sums = np.bincount(grown.indices[copied], drawn[copied], minlength=grown.source_size)
    shares = np.where(copied, drawn / sums[grown.indices], 1.0)
    return IndexMap(grown.indices, grown.source_size, shares, grown.fractions)
