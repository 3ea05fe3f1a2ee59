"""The attention probabilities of a layer that runs."""

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float

from b2b_jax.models.layers import SelfAttention


def with_attention(
    function: Callable[..., Any],
) -> Callable[..., tuple[Any, Float[Array, "B H T T"]]]:
    """Make a function that runs one layer return its attention probabilities as well.

    They are computed in float32 from the queries, keys and masks that the layer itself computes
    with (bert2BERT, Eq. 2). Works under `jax.jit`, and in the body of a `jax.lax.scan`, when the
    function that is made here is inside of them.

    Example:
        >>> import jax
        >>> from b2b_jax.models import build_model, preset
        >>> model = build_model(preset("bert-tiny"))
        >>> params = model.init(jax.random.key(0))
        >>> lowest = jax.tree.map(lambda leaf: leaf[0], params["layers"])
        >>> _, probabilities = with_attention(model.run_layer)(lowest, jax.numpy.ones((2, 5, 128)))
        >>> probabilities.shape
        (2, 4, 5, 5)
    """

    def run(*args: Any, **kwargs: Any) -> tuple[Any, Float[Array, "B H T T"]]:
        projected: dict[str, Array] = {}
        found: list[Array] = []

        def record(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            result, module = call(*args, **kwargs), context.module
            if context.method_name == "__call__":
                if isinstance(module.parent, SelfAttention):
                    projected[str(module.name)] = result
                if isinstance(module, SelfAttention):
                    found.append(_probabilities(projected, args[1], causal=module.causal))
            return result

        with nn.intercept_methods(record):
            result = function(*args, **kwargs)
        (probabilities,) = found
        return result, probabilities

    return run


def _probabilities(
    projected: dict[str, Float[Array, "B T H K"]],
    mask_BT: Bool[Array, "B T"] | None,
    *,
    causal: bool,
) -> Float[Array, "B H T T"]:
    query, key = (projected[name].astype(jnp.float32) for name in ("query", "key"))
    batch, tokens = query.shape[:2]
    mask = jnp.ones((batch, 1, tokens, tokens), bool)
    if mask_BT is not None:
        mask = mask & mask_BT[:, None, None, :]
    if causal:
        mask = jnp.tril(mask)
    return nn.dot_product_attention_weights(query, key, mask=mask)
