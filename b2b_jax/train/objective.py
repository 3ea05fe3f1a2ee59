"""Masked and causal language modelling over any prefix of the layers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from b2b_jax.data import TokenizerInfo, mask_tokens
from b2b_jax.models import Decoder, Model
from b2b_jax.train.live import TIED_TABLE
from b2b_jax.train.losses import LossSum
from b2b_jax.train.stages import SubModel
from b2b_jax.train.vocabulary import VocabularyLoss
from b2b_jax.tree import flatten, unflatten
from b2b_jax.types import Abstract, PRNGKey


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Example:
    """A batch with its targets.

    Attributes:
        input_ids: int32 ``[B, T]``, what the model reads.
        positions: int32 ``[B, M]``, where it predicts; None means everywhere.
        labels: int32 ``[B, M]`` or ``[B, T]``.
        weights: float32, the shape of ``labels``.
    """

    input_ids: Int[Array, "B T"] | Abstract
    positions: Int[Array, "B M"] | Abstract | None
    labels: Int[Array, "B M"] | Abstract
    weights: Float[Array, "B M"] | Abstract


@dataclass(frozen=True)
class Objective:
    """What is predicted: masked tokens (BERT) or the next token (GPT-2).

    Attributes:
        kind: "mlm" or "clm".
        tokenizer: ids of the special tokens.
        num_masked: masked positions per sequence ("mlm").
    """

    kind: Literal["mlm", "clm"]
    tokenizer: TokenizerInfo
    num_masked: int = 0

    def predictions(self, sequence_length: int) -> int:
        """Predictions per sequence."""
        return self.num_masked if self.kind == "mlm" else sequence_length - 1

    def example(self, input_ids: Int[Array, "B T"], key: PRNGKey) -> Example:
        """Make inputs and targets; masks are redrawn from the key, on the device."""
        if self.kind == "clm":
            weights = jnp.ones(input_ids.shape, jnp.float32).at[:, -1].set(0.0)
            return Example(input_ids, None, jnp.roll(input_ids, -1, axis=1), weights)
        masked = mask_tokens(key, input_ids, num_masked=self.num_masked, tokenizer=self.tokenizer)
        return Example(masked.input_ids, masked.positions, masked.labels, masked.weights)


def at_positions(
    x_BTD: Float[Array, "B T D"], positions_BM: Int[Array, "B M"] | None
) -> Float[Array, "B M D"]:
    """Rows at the predicted positions only, so that the large head runs on nothing else."""
    if positions_BM is None:
        return x_BTD
    return jnp.take_along_axis(x_BTD, positions_BM[..., None], axis=1)


def training_hidden(
    live: Mapping[str, Any],
    params: Mapping[str, Any],
    example: Example,
    *,
    model: Model,
    sub: SubModel,
    dropout_key: PRNGKey | None,
) -> tuple[Float[Array, "B M D"], Decoder]:
    """What a sub-model predicts from, as a function of its trained cut (bert2BERT, Algorithm 2).

    Only ``live`` is to be differentiated. Layers above the sub-model are not run. Layers below the
    trained ones, the embeddings where frozen, and the token table where it is frozen on one of its
    two sides are read from ``params`` and are constants.

    Args:
        live: what `live.select` cut out of ``params``.
        params: all parameters.
        example: inputs and targets.
        model: the full model.
        sub: which layers run and which are trained.
        dropout_key: none, no dropout.

    Returns:
        hidden states at the predicted positions, and what turns them into logits.
    """
    flat, flat_live = flatten(params), flatten(live)
    embeddings_from = flat | flat_live if sub.embeddings == "trained" else flat
    head_from = dict(flat | flat_live)
    if sub.output_table == "frozen":
        head_from[TIED_TABLE] = flat[TIED_TABLE]
    embed_key, layer_keys = None, None
    if dropout_key is not None:
        keys = jax.random.split(dropout_key, model.cfg.num_hidden_layers + 1)
        embed_key, layer_keys = keys[0], keys[1:]

    def keys_of(start: int, stop: int) -> PRNGKey | None:
        return None if layer_keys is None else layer_keys[start:stop]

    x_BTD = model.embed(unflatten(embeddings_from), example.input_ids, dropout_key=embed_key)
    if sub.first_live:
        below = jax.tree.map(lambda leaf: leaf[: sub.first_live], params["layers"])
        x_BTD = model.run_layers(below, x_BTD, dropout_keys=keys_of(0, sub.first_live))
    if sub.live_layers:
        keys = keys_of(sub.first_live, sub.depth)
        x_BTD = model.run_layers(live["layers"], x_BTD, dropout_keys=keys)
    x_BMD = at_positions(x_BTD, example.positions)
    head = unflatten(head_from)
    return model.before_decoder(head, x_BMD), model.decoder(head)


def prefix_losses(
    params: Mapping[str, Any],
    example: Example,
    *,
    model: Model,
    depths: Sequence[int],
    vocabulary: VocabularyLoss,
) -> LossSum:
    """Losses of several bottom prefixes under the shared head, in one pass, without dropout.

    Args:
        params: all parameters.
        example: inputs and targets.
        model: the full model.
        depths: numbers of layers, ascending.
        vocabulary: the loss of hidden states.

    Returns:
        a `LossSum` whose fields have one entry per depth.
    """
    x_BTD = model.embed(params, example.input_ids)
    losses, done = [], 0
    for depth in depths:
        between = jax.tree.map(lambda leaf, a=done, b=depth: leaf[a:b], params["layers"])
        x_BTD = model.run_layers(between, x_BTD)
        hidden = model.before_decoder(params, at_positions(x_BTD, example.positions))
        losses.append(
            vocabulary(
                hidden, model.decoder(params), labels=example.labels, weights=example.weights
            )
        )
        done = depth
    return jax.tree.map(lambda *entries: jnp.stack(entries), *losses)
