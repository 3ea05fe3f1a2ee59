"""From which layer and head of its source every attention head of a grown model was made."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int

from b2b_jax.growth import GrowthError, GrowthPlan

NO_DONOR = -1
MATCHED = ("layers/attention/query/kernel", "layers/attention/key/kernel")
"""What decides the attention pattern of a head: a head has a donor if both were copied from it."""


@dataclass(frozen=True, eq=False)
class HeadDonors:
    """The donor of every head of a grown model.

    Attributes:
        layers: layer of the source that the head was copied from, or `NO_DONOR`.
        heads: head of that layer, or `NO_DONOR`.
        twins: for every head beyond the source's number the head of its own layer whose copy FPI
            would have made it, and the head itself for the others.
        source_heads: heads per layer of the source.
    """

    layers: Int[np.ndarray, "L H"]
    heads: Int[np.ndarray, "L H"]
    twins: Int[np.ndarray, " H"]
    source_heads: int

    @property
    def is_known(self) -> Bool[np.ndarray, "L H"]:
        """Which heads have a donor."""
        return self.heads != NO_DONOR

    @property
    def is_new(self) -> Bool[np.ndarray, " H"]:
        """Which heads of a layer are beyond the number that the source has."""
        return np.arange(len(self.twins)) >= self.source_heads


def head_donors(plan: GrowthPlan) -> HeadDonors:
    """Say of which head of the source every head of the target is a copy.

    With FPI of one in the layer that its own layer copies (bert2BERT, Eq. 7); with AKI the new
    ones of one in the layer above that, but for the last layer, which has none above it (Eq. 16).
    DirectCopy copies into the leading layers and heads and draws the rest, random growth draws all.
    AKI's scope makes no difference: queries and keys produce heads, and heads live inside a layer.

    Raises:
        GrowthError: if the plan is of a model without the attention of this package.

    Example:
        >>> from b2b_jax.growth import plan_growth
        >>> from b2b_jax.models import preset
        >>> small = preset("bert-tiny").replace(num_hidden_layers=2)
        >>> large = small.replace(hidden_size=192, num_attention_heads=6)
        >>> donors = head_donors(plan_growth(small, large, method="aki"))
        >>> donors.layers[0].tolist(), donors.heads[0].tolist()
        ([0, 0, 0, 0, 1, 1], [0, 1, 2, 3, 0, 1])
    """
    missing = [path for path in MATCHED if path not in plan.axes]
    if missing:
        raise GrowthError(f"the plan's model has no {', '.join(missing)}, so no heads to compare")
    order, grown = plan.maps["layers"], plan.maps["heads"]
    shape = order.target_size, grown.target_size
    layers = np.broadcast_to(order.indices[:, None], shape)
    heads = np.broadcast_to(grown.indices, shape)
    if all("heads" in plan.donated_axes(path) for path in MATCHED):
        upper = np.minimum(layers + 1, order.source_size - 1)
        layers = np.where(grown.is_new_copy, upper, layers)
    if not plan.copies:
        own_layers, own_heads = np.indices(shape)
        in_corner = (own_layers < order.source_size) & (own_heads < grown.source_size)
        has_donor = in_corner & (plan.method == "direct_copy")
        layers = np.where(has_donor, own_layers, NO_DONOR)
        heads = np.where(has_donor, own_heads, NO_DONOR)
    own = np.arange(grown.target_size)
    twins = np.where(own < grown.source_size, own, grown.indices)
    return HeadDonors(layers, heads, twins=twins, source_heads=grown.source_size)
