"""What every head of a model attends to, and how alike the heads of two models are.

Shape suffixes: L layers, B batch, H heads, T tokens.
"""

import functools
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from b2b_jax.models import Model, with_attention


@functools.partial(jax.jit, static_argnums=0)
def attention_probabilities(
    model: Model,
    params: Mapping[str, Any],
    *,
    input_ids: Int[Array, "B T"],
    attention_mask: Int[Array, "B T"] | None = None,
    token_type_ids: Int[Array, "B T"] | None = None,
) -> Float[Array, "L B H T T"]:
    r"""The attention probabilities of every layer and head, float32, without dropout.

    $$\mathrm{softmax}(Q K^\top / \sqrt{d_k} + \mathrm{mask})$$

    Row t of a head says how much the token t attends to every token (bert2BERT, Eq. 2).

    Args:
        model: the model.
        params: its parameters; heads are not needed.
        input_ids: token ids.
        attention_mask: 1 where a token may be attended to; all of them by default.
        token_type_ids: segment ids (BERT); zeros by default.

    Example:
        >>> from b2b_jax.models import build_model, preset
        >>> model = build_model(preset("gpt2-tiny"))
        >>> params = model.init(jax.random.key(0))
        >>> attention_probabilities(model, params, input_ids=jnp.ones((2, 5), int)).shape
        (4, 2, 4, 5, 5)
    """
    mask = None if attention_mask is None else attention_mask.astype(bool)

    def one_layer(x_BTD: Array, layer: Any) -> tuple[Array, Array]:
        return with_attention(model.run_layer)(layer, x_BTD, mask=mask)

    x_BTD = model.embed(params, input_ids, token_type_ids=token_type_ids)
    _, probabilities_LBHTT = jax.lax.scan(one_layer, x_BTD, params["layers"])
    return probabilities_LBHTT


@jax.jit
def head_similarity(
    one: Float[Array | np.ndarray, "L1 B H1 T T"],
    other: Float[Array | np.ndarray, "L2 B H2 T T"],
    *,
    seen: Bool[Array | np.ndarray, "B T"],
) -> Float[Array, "L1 H1 L2 H2"]:
    r"""How alike the attention of any two heads is: the mean cosine of their rows.

    A row is what one token attends to. Rows of tokens that are padding do not count:

    $$\frac{1}{N} \sum_{b, t\, \mathrm{seen}} \frac{a_{bt} \cdot c_{bt}}{|a_{bt}|\, |c_{bt}|}$$

    Rows hold no negative numbers, so that 0 is never reached by chance: compare with what two
    heads that have nothing to do with each other get.

    Args:
        one: attention probabilities.
        other: those of another model, or the same, on the same tokens.
        seen: False where a token is padding.
    """

    def unit_rows(probabilities: Array | np.ndarray) -> Array:
        lengths = jnp.linalg.norm(probabilities, axis=-1, keepdims=True)
        return jnp.where(seen[:, None, :, None], probabilities / lengths, 0)

    cosines = jnp.einsum("lbhts,mbgts->lhmg", unit_rows(one), unit_rows(other))
    return cosines / seen.sum()
