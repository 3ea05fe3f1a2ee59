"""Names for the pytrees that travel between the parts of the package."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Array

Params = dict[str, Any]
"""A nested plain dict whose leaves are arrays; inner keys never hold a slash."""

FlatParams = dict[str, Any]
"""The same leaves keyed by their slash-joined path, for example ``layers/mlp/up/kernel``."""

AxisSizes = Mapping[str, int]
"""Size of every named axis of a model, for example ``{"embed": 768, "heads": 12}``."""

PRNGKey = Array
"""A JAX random key, as `jax.random.key` makes it."""

Abstract = Any
"""Stands beside the type of a pytree's field: transforms also put shapes or shardings there."""
