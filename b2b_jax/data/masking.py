"""Masking for masked language modelling, on the device, as a pure function of a key."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from b2b_jax.data.errors import DataError
from b2b_jax.data.tokenizer import TokenizerInfo
from b2b_jax.types import Abstract

MASKED, REPLACED = 0.8, 0.1


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class MaskedBatch:
    """A batch with some tokens hidden.

    Attributes:
        input_ids: int32 ``[B, T]``, what the model sees.
        positions: int32 ``[B, M]``, ascending, where it has to predict.
        labels: int32 ``[B, M]``, the tokens that were there.
        weights: float32 ``[B, M]``, 0 where a sequence has fewer than M tokens to mask.
    """

    input_ids: Int[Array, "B T"] | Abstract
    positions: Int[Array, "B M"] | Abstract
    labels: Int[Array, "B M"] | Abstract
    weights: Float[Array, "B M"] | Abstract


def mask_tokens(
    key: Array, input_ids: Int[Array, "B T"], *, num_masked: int, tokenizer: TokenizerInfo
) -> MaskedBatch:
    """Choose tokens to predict and hide them (Devlin et al., 2019, section 3.1).

    Positions are drawn uniformly, without repetition, among tokens that are not special. Of the
    chosen ones 80 % become [MASK], 10 % another token drawn uniformly, 10 % stay.

    Args:
        key: random key; the result depends on nothing else, on no device layout either.
        input_ids: int ``[B, T]``.
        num_masked: M, predictions per sequence.
        tokenizer: special ids.

    Raises:
        DataError: if the vocabulary has no mask token.

    Example:
        >>> info = TokenizerInfo(50, 0, 4, 2, 3, (0, 1, 2, 3, 4))
        >>> ids = jnp.arange(5, 25).reshape(2, 10)
        >>> mask_tokens(jax.random.key(0), ids, num_masked=3, tokenizer=info).positions.shape
        (2, 3)
    """
    if tokenizer.mask_id < 0:
        raise DataError("the tokenizer has no [MASK] token; masked language modelling needs one")
    if not 0 < num_masked <= input_ids.shape[1]:
        raise DataError(
            f"num_masked: found {num_masked}, expected 1 to the sequence length "
            f"{input_ids.shape[1]}"
        )
    special = np.zeros(tokenizer.vocab_size, bool)
    special[list(tokenizer.special_ids)] = True
    ordinary = np.flatnonzero(~special)
    choose_key, decide_key, replace_key = jax.random.split(key, 3)
    scores = jax.random.uniform(choose_key, input_ids.shape)
    scores = jnp.where(jnp.asarray(special)[input_ids], -1.0, scores)
    top, positions = jax.lax.top_k(scores, num_masked)
    order = jnp.argsort(positions, axis=1)
    positions = jnp.take_along_axis(positions, order, axis=1)
    weights = (jnp.take_along_axis(top, order, axis=1) >= 0).astype(jnp.float32)
    labels = jnp.take_along_axis(input_ids, positions, axis=1)
    decision = jax.random.uniform(decide_key, labels.shape)
    drawn = jax.random.randint(replace_key, labels.shape, 0, len(ordinary))
    replacement = jnp.asarray(ordinary, input_ids.dtype)[drawn]
    seen = jnp.where(decision < MASKED, tokenizer.mask_id, labels)
    seen = jnp.where((decision >= MASKED) & (decision < MASKED + REPLACED), replacement, seen)
    seen = jnp.where(weights > 0, seen, labels).astype(input_ids.dtype)
    rows = jnp.arange(input_ids.shape[0])[:, None]
    return MaskedBatch(input_ids.at[rows, positions].set(seen), positions, labels, weights)
