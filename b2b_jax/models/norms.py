"""The LayerNorms of a model that runs: what they read, and other statistics for them to take."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn
from jaxtyping import Array, Float


def with_norm_inputs(function: Callable[..., Any]) -> Callable[..., tuple[Any, dict[str, Array]]]:
    """Make a function that runs modules return what their norms read as well: name -> array.

    Works under `jax.jit` when the jitted function is the one that is made here. Norms inside of a
    `jax.lax.scan` of the function cannot be taken out of it.

    Example:
        >>> import jax
        >>> from b2b_jax.models import build_model, preset
        >>> model = build_model(preset("bert-tiny"))
        >>> params = model.init(jax.random.key(0))
        >>> _, read = with_norm_inputs(model.embed)(params, jax.numpy.ones((2, 5), int))
        >>> read["norm"].shape
        (2, 5, 128)
    """

    def run(*args: Any, **kwargs: Any) -> tuple[Any, dict[str, Array]]:
        read: dict[str, Array] = {}

        def record(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
            if _is_norm(context):
                read[str(context.module.name)] = args[0]
            return call(*args, **kwargs)

        with nn.intercept_methods(record):
            return function(*args, **kwargs), read

    return run


def with_weighted_norms(
    function: Callable[..., Any], weights: Float[Array, " width"]
) -> Callable[..., Any]:
    """Make a function that runs modules take mean and variance in its norms by weight.

    With copy counts over the target's width as weights, a source model computes what its grown
    model would: copies are equal, so only the statistics of the norms tell the two apart.

    Args:
        function: runs modules whose norms are all as wide as ``weights``.
        weights: of every entry; they sum to one.
    """

    def weighted(call: Callable[..., Any], args: Any, kwargs: Any, context: Any) -> Any:
        if not _is_norm(context):
            return call(*args, **kwargs)
        norm, x = context.module, args[0]
        params = norm.variables["params"]
        x = x - (x * weights).sum(-1, keepdims=True)
        variance = (x**2 * weights).sum(-1, keepdims=True)
        return x * jax.lax.rsqrt(variance + norm.epsilon) * params["scale"] + params["bias"]

    def run(*args: Any, **kwargs: Any) -> Any:
        with nn.intercept_methods(weighted):
            return function(*args, **kwargs)

    return run


def _is_norm(context: Any) -> bool:
    return isinstance(context.module, nn.LayerNorm) and context.method_name == "__call__"
