"""Index maps: which source entry every target entry of an axis copies (bert2BERT, Eq. 5 and 6)."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from b2b_jax.growth.errors import GrowthError

MEAN = -1
"""The index of an entry that copies no other: it is the mean of all source entries."""


@dataclass(frozen=True, eq=False)
class IndexMap:
    """The map g of one axis, from target index to source index.

    Attributes:
        indices: int32 ``[target]``; entry ``i`` copies source entry ``indices[i]``, or is the mean
            of all of them where that is `MEAN`.
        source_size: size of the axis in the source.
        shares: float32 ``[target]``; the part of a weight that a consumer of the axis gives to each
            copy. They sum to one over the copies of an entry; None for equal parts, the 1/C of
            Eq. 7.
        fractions: float32 ``[target]``; how far an entry lies on the way from its source entry to
            the next one, 0 <= f < 1; None for nowhere.
    """

    indices: np.ndarray
    source_size: int
    shares: np.ndarray | None = None
    fractions: np.ndarray | None = None

    def __post_init__(self) -> None:
        if np.asarray(self.indices).dtype.kind not in "iu":
            raise GrowthError(f"an index map must be of whole numbers, found {self.indices!r}")
        indices = np.array(self.indices, np.int32)  # a copy, for it is made read-only
        if indices.ndim != 1 or (
            indices.size and not MEAN <= indices.min() <= indices.max() < self.source_size
        ):
            raise GrowthError(
                f"an index map must be one list of indices in [0, {self.source_size}), "
                f"found shape {indices.shape} with values "
                + (f"{indices.min()} to {indices.max()}" if indices.size else "of none")
            )
        indices.setflags(write=False)
        object.__setattr__(self, "indices", indices)
        for name in ("shares", "fractions"):
            self._set_numbers(name)
        if self.shares is not None:
            copied = indices != MEAN
            sums = np.bincount(indices[copied], self.shares[copied], minlength=self.source_size)
            wrong = np.flatnonzero((self.counts > 0) & (np.abs(sums - 1) > 1e-5))
            if wrong.size or (self.shares == 0).any():
                raise GrowthError(
                    "shares must differ from 0 and sum to 1 over the copies of an entry; found "
                    f"sums {sums[wrong[:4]].tolist()} for the entries {wrong[:4].tolist()}"
                )

    def _set_numbers(self, name: str) -> None:
        if getattr(self, name) is None:
            return
        numbers = np.array(getattr(self, name), np.float32)
        if numbers.shape != self.indices.shape:
            raise GrowthError(
                f"{name}: found shape {numbers.shape}, expected {self.indices.shape}, one number "
                "for every target entry"
            )
        if not np.isfinite(numbers).all():
            raise GrowthError(f"{name}: found {numbers[~np.isfinite(numbers)][0]}, no number")
        if name == "fractions" and not ((numbers >= 0) & (numbers < 1)).all():
            raise GrowthError(
                f"fractions: found {numbers.min()} to {numbers.max()}, expected 0 <= f < 1"
            )
        numbers.setflags(write=False)
        object.__setattr__(self, name, numbers)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, IndexMap) and self._identity == other._identity

    def __hash__(self) -> int:
        return hash(self._identity)

    @cached_property
    def _identity(self) -> tuple[Any, ...]:
        parts = (self.indices, self.shares, self.fractions)
        return (self.source_size, *(part if part is None else part.tobytes() for part in parts))

    @property
    def target_size(self) -> int:
        """Size of the axis in the target."""
        return len(self.indices)

    @cached_property
    def counts(self) -> np.ndarray:
        """How often every source entry is copied: ``[source]``, the C of Eq. 7."""
        return np.bincount(self.indices[self.indices != MEAN], minlength=self.source_size)

    @cached_property
    def copies(self) -> np.ndarray:
        """The C of Eq. 7 as seen from the target: ``[target]``, 1 for a mean."""
        return np.where(self.is_mean, 1, self.counts[self.indices])

    @cached_property
    def weights(self) -> np.ndarray:
        """What a consumer of the axis multiplies each copy by: float32 ``[target]``."""
        if self.shares is not None:
            return self.shares
        return 1 / self.copies.astype(np.float32)

    @cached_property
    def is_mean(self) -> np.ndarray:
        """Which target entries are the mean of all source entries: bool ``[target]``."""
        return self.indices == MEAN

    @cached_property
    def is_copy(self) -> np.ndarray:
        """Which target entries are one source entry as it is: bool ``[target]``."""
        return ~self.is_mean if self.fractions is None else ~self.is_mean & (self.fractions == 0)

    @cached_property
    def is_new_copy(self) -> np.ndarray:
        """Which target entries beyond the source's size are copies: bool ``[target]``."""
        return self.is_copy & (np.arange(self.target_size) >= self.source_size)

    @property
    def is_identity(self) -> bool:
        """Whether the axis stays as it is."""
        return self.starts_with_identity and self.target_size == self.source_size

    @property
    def starts_with_identity(self) -> bool:
        """Whether the first source-size entries copy themselves, as Eq. 5 and 6 demand."""
        own = slice(self.source_size)
        return np.array_equal(self.indices[own], np.arange(self.source_size)) and bool(
            self.is_copy[own].all()
        )

    @property
    def is_even(self) -> bool:
        """Whether every source entry is copied equally often, which LayerNorm cannot notice."""
        return bool((self.counts == self.counts[0]).all())

    @property
    def variance_ratio(self) -> float:
        """Variance over the target's entries by that over the source's, for an even map.

        Entries that are the mean add nothing to the sum of squares and count in its mean.
        """
        return 1 - float(self.is_mean.mean()) if self.target_size else 1.0

    def to_dict(self) -> dict[str, Any]:
        """The map as JSON values."""
        fields: dict[str, Any] = {
            "source_size": self.source_size,
            "indices": self.indices.tolist(),
        }
        for name in ("shares", "fractions"):
            if getattr(self, name) is not None:
                fields[name] = getattr(self, name).tolist()
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> "IndexMap":
        """Rebuild a map from `to_dict`'s value."""
        numbers = {
            name: np.asarray(value) for name, value in fields.items() if name != "source_size"
        }
        return cls(source_size=fields["source_size"], **numbers)


def identity(size: int) -> IndexMap:
    """The map of an axis that does not grow."""
    return IndexMap(np.arange(size), size)


def compose(first: IndexMap, second: IndexMap) -> IndexMap:
    """The map of growing by ``first`` and then by ``second``.

    Copies of copies get the product of their shares, which differ where ``first`` is uneven.

    Raises:
        GrowthError: if ``second`` does not start from the size at which ``first`` ends, or one of
            them makes entries that are no copies.
    """
    if second.source_size != first.target_size:
        raise GrowthError(
            f"maps do not compose: the first ends at {first.target_size}, "
            f"the second starts from {second.source_size}"
        )
    if not (first.is_copy.all() and second.is_copy.all()):
        raise GrowthError("maps do not compose: one makes means or interpolated entries")
    composed = IndexMap(first.indices[second.indices], first.source_size)
    if (second.counts == 0).any():  # takes entries away: what is left sums to nothing in particular
        return composed
    shares = first.weights[second.indices] * second.weights
    if np.array_equal(shares, composed.weights):
        return composed
    return IndexMap(composed.indices, composed.source_size, shares)


def invert(grown: IndexMap) -> IndexMap:
    """A map back to the source size: every source entry is read from its first copy.

    Raises:
        GrowthError: if some source entry was not copied at all.

    Example:
        >>> invert(IndexMap(np.array([0, 1, 0, 1, 0]), 2)).indices.tolist()
        [0, 1]
    """
    places = np.flatnonzero(grown.is_copy)
    kept, first = np.unique(grown.indices[places], return_index=True)
    lost = np.setdiff1d(np.arange(grown.source_size), kept)
    if lost.size:
        raise GrowthError(f"source entries {lost[:8].tolist()} have no copy; nothing to invert")
    return IndexMap(places[first], grown.target_size)
