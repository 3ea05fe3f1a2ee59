"""Index maps: which source entry every target entry of an axis copies (bert2BERT, Eq. 5 and 6)."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from b2b_jax.growth.errors import GrowthError

Mapping = Literal["cyclic", "balanced", "uniform"]


@dataclass(frozen=True, eq=False)
class IndexMap:
    """The map g of one axis, from target index to source index.

    Attributes:
        indices: int32 ``[target]``; entry ``i`` copies source entry ``indices[i]``.
        source_size: size of the axis in the source.
    """

    indices: np.ndarray
    source_size: int

    def __post_init__(self) -> None:
        indices = np.array(self.indices, np.int32)  # a copy, for it is made read-only
        if indices.ndim != 1 or (
            indices.size and not 0 <= indices.min() <= indices.max() < self.source_size
        ):
            raise GrowthError(
                f"an index map must be one list of indices in [0, {self.source_size}), "
                f"found shape {indices.shape} with values {indices.min(initial=0)} to "
                f"{indices.max(initial=0)}"
            )
        indices.setflags(write=False)
        object.__setattr__(self, "indices", indices)

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, IndexMap)
            and self.source_size == other.source_size
            and np.array_equal(self.indices, other.indices)
        )

    def __hash__(self) -> int:
        return hash((self.source_size, self.indices.tobytes()))

    @property
    def target_size(self) -> int:
        """Size of the axis in the target."""
        return len(self.indices)

    @cached_property
    def counts(self) -> np.ndarray:
        """How often every source entry is copied: ``[source]``, the C of Eq. 7."""
        return np.bincount(self.indices, minlength=self.source_size)

    @cached_property
    def copies(self) -> np.ndarray:
        """The C of Eq. 7 as seen from the target: ``[target]``, ``counts[indices]``."""
        return self.counts[self.indices]

    @property
    def is_identity(self) -> bool:
        """Whether the axis stays as it is."""
        return self.starts_with_identity and self.target_size == self.source_size

    @property
    def starts_with_identity(self) -> bool:
        """Whether the first source-size entries copy themselves, as Eq. 5 and 6 demand."""
        return np.array_equal(self.indices[: self.source_size], np.arange(self.source_size))

    @property
    def is_even(self) -> bool:
        """Whether every source entry is copied equally often, which LayerNorm cannot notice."""
        return bool((self.counts == self.counts[0]).all())


def identity(size: int) -> IndexMap:
    """The map of an axis that does not grow."""
    return IndexMap(np.arange(size), size)


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


MAPPINGS: dict[Mapping, Callable[[int, int, np.random.Generator], IndexMap]] = {
    "cyclic": lambda source, target, rng: cyclic(source, target),
    "balanced": balanced,
    "uniform": uniform,
}


def compose(first: IndexMap, second: IndexMap) -> IndexMap:
    """The map of growing by ``first`` and then by ``second``.

    Raises:
        GrowthError: if ``second`` does not start from the size at which ``first`` ends.
    """
    if second.source_size != first.target_size:
        raise GrowthError(
            f"maps do not compose: the first ends at {first.target_size}, "
            f"the second starts from {second.source_size}"
        )
    return IndexMap(first.indices[second.indices], first.source_size)


def invert(grown: IndexMap) -> IndexMap:
    """A map back to the source size: every source entry is read from its first copy.

    Raises:
        GrowthError: if some source entry was not copied at all.

    Example:
        >>> invert(cyclic(2, 5)).indices.tolist()
        [0, 1]
    """
    lost = np.flatnonzero(grown.counts == 0)
    if lost.size:
        raise GrowthError(f"source entries {lost[:8].tolist()} have no copy; nothing to invert")
    _, first = np.unique(grown.indices, return_index=True)
    return IndexMap(first, grown.target_size)
