"""A grown model's heads against those of its source, and against each other."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Array, Bool, Float, Int

from b2b_jax.evaluate.attention import head_similarity
from b2b_jax.evaluate.donors import HeadDonors


@dataclass(frozen=True, eq=False)
class HeadComparison:
    """How alike attention patterns are; `head_similarity` says by what measure.

    Attributes:
        donors: of every grown head; None where nothing is known of them.
        to_donor: similarity of every grown head to its donor; nan without one.
        to_twin: similarity of every new head to its twin in its own layer, of which FPI makes it a
            copy: what is 1 stays 1 under training. nan for all others.
        closest_layers: layer of the source that holds the most similar of all its heads.
        closest_heads: which head of it that is.
        to_closest: similarity to that one.
        any_two: mean similarity of a grown head and any head of the source, as a yardstick.
    """

    donors: HeadDonors | None
    to_donor: Float[np.ndarray, "L H"]
    to_twin: Float[np.ndarray, "L H"]
    closest_layers: Int[np.ndarray, "L H"]
    closest_heads: Int[np.ndarray, "L H"]
    to_closest: Float[np.ndarray, "L H"]
    any_two: float

    @property
    def groups(self) -> dict[str, Bool[np.ndarray, "L H"]]:
        """Which heads have a donor and are copied as they stood, or new; and which have none."""
        shape = self.to_donor.shape
        if self.donors is None:
            return {"no donor": np.ones(shape, bool)}
        known, is_new = self.donors.is_known, np.broadcast_to(self.donors.is_new, shape)
        return {"copied": known & ~is_new, "new": known & is_new, "no donor": ~known}

    def describe(self) -> str:
        """A text table: mean similarities of every layer and of all, by group of heads."""
        columns = {
            f"{name} heads to donor": np.where(chosen, self.to_donor, np.nan)
            for name, chosen in self.groups.items()
            if name != "no donor"
        }
        columns["all to donor"] = self.to_donor
        columns["new heads to twin"] = self.to_twin
        fresh = self.groups["no donor"]
        columns["heads without donor to closest"] = np.where(fresh, self.to_closest, np.nan)
        columns = {name: found for name, found in columns.items() if np.isfinite(found).any()}
        lines = ["         " + "  ".join(columns)]
        for layer in range(len(self.to_donor)):
            cells = [_cell(found[layer], len(name)) for name, found in columns.items()]
            lines.append(f"layer {layer:<3}" + "  ".join(cells))
        cells = [_cell(found, len(name)) for name, found in columns.items()]
        lines.append("all      " + "  ".join(cells))
        return "\n".join([*lines, f"any head to any of the source's: {self.any_two:.4f}"])


def _cell(found: Float[np.ndarray, "..."], width: int) -> str:
    mean = mean_similarity(found)
    return f"{'-' if mean is None else f'{mean:.4f}':>{width}}"


def mean_similarity(found: Float[np.ndarray, "..."]) -> float | None:
    """The mean of what is no nan; None if nothing else is there."""
    known = found[np.isfinite(found)]
    return float(known.mean()) if known.size else None


def compare_heads(
    source: Float[Array | np.ndarray, "Ls B Hs T T"],
    grown: Float[Array | np.ndarray, "L B H T T"],
    *,
    seen: Bool[np.ndarray, "B T"],
    donors: HeadDonors | None = None,
) -> HeadComparison:
    """Compare every head of a grown model with its donor, its twin, and all of the source's heads.

    Args:
        source: attention probabilities of the source.
        grown: those of the grown model on the same tokens.
        seen: False where a token is padding.
        donors: of the grown model's heads; without them only the closest ones are found.
    """
    to_source = np.asarray(head_similarity(grown, source, seen=seen))
    layers, heads = to_source.shape[:2]
    flat = to_source.reshape(layers, heads, -1)
    closest_layers, closest_heads = np.unravel_index(flat.argmax(-1), to_source.shape[2:])
    to_donor = to_twin = np.full((layers, heads), np.nan, np.float32)
    if donors is not None:
        own_layers, own_heads = np.indices((layers, heads))
        at_donor = to_source[own_layers, own_heads, donors.layers, donors.heads]
        to_donor = np.where(donors.is_known, at_donor, np.nan)
        within = np.asarray(head_similarity(grown, grown, seen=seen))
        at_twin = within[own_layers, own_heads, own_layers, donors.twins]
        to_twin = np.where(donors.is_new, at_twin, np.nan)
    return HeadComparison(
        donors,
        to_donor,
        to_twin,
        closest_layers,
        closest_heads,
        flat.max(-1),
        any_two=float(to_source.mean()),
    )
