"""Cross-entropy over a large vocabulary without all of its logits at once."""

import functools
import math
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from b2b_jax.models import Decoder
from b2b_jax.train.losses import LossSum, cross_entropy
from b2b_jax.train.sharding import BATCH_AXES, PARAM_RULES

LOGITS_BYTES = 2**28
"""Float32 logits that one device holds at a time."""


@dataclass(frozen=True)
class VocabularyLoss:
    """The loss of hidden states against labels, a block of predictions at a time.

    On a mesh every device takes its own sequences and its own part of the vocabulary. It collects
    the table along fsdp once, for the forward and the backward pass together, since the gradient of
    the logits is made where the logits are; it leaves as shares again. On one device, where all
    logits fit, the loss is `cross_entropy` of them.

    Attributes:
        mesh: that the batch and the table lie on; None for one device.
        logits_bytes: that one device may hold.
    """

    mesh: Mesh | None = None
    logits_bytes: int = LOGITS_BYTES

    def parts(self, sequences: int, predictions: int, *, vocab: int) -> int:
        """Into how many equal parts to cut sequences whose logits are needed one part at a time.

        Args:
            sequences: of all devices together.
            predictions: of each.
            vocab: tokens.

        Example:
            >>> VocabularyLoss(logits_bytes=4 * 1000).parts(6, 5, vocab=100)
            3
        """
        shares = 1 if self.mesh is None else math.prod(self.mesh.shape[axis] for axis in BATCH_AXES)
        rows = max(1, sequences // shares)
        at_once = max(1, self.logits_bytes // (4 * predictions * vocab))
        return next(n for n in range(1, rows + 1) if rows % n == 0 and rows <= n * at_once)

    def __call__(
        self,
        hidden: Float[Array, "B M D"],
        decoder: Decoder,
        *,
        labels: Int[Array, "B M"],
        weights: Float[Array, "B M"],
    ) -> LossSum:
        """Summed cross-entropy and sum of weights.

        Args:
            hidden: what the decoder reads.
            decoder: table and bias.
            labels: the right token of each.
            weights: how much each counts.
        """
        alone = self.mesh is None or self.mesh.size == 1
        rows, vocab = math.prod(labels.shape), decoder.table.shape[0]
        if alone and 4 * rows * vocab <= self.logits_bytes:
            return cross_entropy(decoder.logits(hidden), labels, weights=weights)
        bias = jnp.zeros(vocab) if decoder.bias is None else decoder.bias
        total = _total(self, hidden, decoder.table, bias, labels, weights)
        return LossSum(total, jnp.sum(weights))


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _total(
    loss: VocabularyLoss, hidden: Array, table: Array, bias: Array, labels: Array, weights: Array
) -> Array:
    return _run(loss, hidden, table, bias, labels, weights, gradients=False)[0]


def _forward(
    loss: VocabularyLoss, hidden: Array, table: Array, bias: Array, labels: Array, weights: Array
) -> tuple[Array, Any]:
    total, *gradients = _run(loss, hidden, table, bias, labels, weights, gradients=True)
    return total, gradients


def _backward(loss: VocabularyLoss, gradients: Any, cotangent: Array) -> tuple[Any, ...]:
    del loss
    d_hidden, d_table, d_bias = (
        (cotangent * leaf.astype(jnp.float32)).astype(leaf.dtype) for leaf in gradients
    )
    return d_hidden, d_table, d_bias, None, None


_total.defvjp(_forward, _backward)


def _run(loss: VocabularyLoss, *arrays: Array, gradients: bool) -> tuple[Array, ...]:
    """The total, and with gradients those of hidden states, table and bias."""
    local = functools.partial(_local, logits_bytes=loss.logits_bytes, gradients=gradients)
    if loss.mesh is None or loss.mesh.size == 1:
        return local(*arrays, axes=None)
    batch, vocab = PartitionSpec(BATCH_AXES), PartitionSpec(PARAM_RULES["vocab"])
    table = PartitionSpec(PARAM_RULES["vocab"], PARAM_RULES["embed"])
    outputs = (PartitionSpec(), batch, table, vocab) if gradients else (PartitionSpec(),)
    return jax.shard_map(
        functools.partial(local, axes=loss.mesh.axis_names),
        mesh=loss.mesh,
        in_specs=(batch, table, vocab, batch, batch),
        out_specs=outputs,
        check_vma=False,
    )(*arrays)


def _local(
    hidden: Array,
    table: Array,
    bias: Array,
    labels: Array,
    weights: Array,
    *,
    logits_bytes: int,
    gradients: bool,
    axes: tuple[str, ...] | None,
) -> tuple[Array, ...]:
    """What one device does with its sequences and its part of the vocabulary."""
    dtype, width = hidden.dtype, hidden.shape[-1]
    table_VD = table.astype(dtype)
    first = 0
    if axes is not None:
        table_VD = jax.lax.all_gather(table_VD, "fsdp", axis=1, tiled=True)
        first = jax.lax.axis_index("tensor") * table.shape[0]
    vocab = table_VD.shape[0]

    def over_tensor(combine: Any, x: Array) -> Array:
        return x if axes is None else combine(x, "tensor")

    rows = math.prod(labels.shape)
    size = min(rows, max(1, logits_bytes // (4 * vocab)))
    blocks = -(-rows // size)

    def in_blocks(x: Array) -> Array:
        flat = x.reshape(rows, *x.shape[2:])
        padding = [(0, blocks * size - rows)] + [(0, 0)] * (flat.ndim - 1)
        return jnp.pad(flat, padding).reshape(blocks, size, *flat.shape[1:])

    def one_block(carry: Any, block: Any) -> tuple[Any, Any]:
        x_ND, label_N, weight_N = block
        logits = jnp.einsum("rd,vd->rv", x_ND, table_VD, preferred_element_type=jnp.float32) + bias
        peak = over_tensor(jax.lax.pmax, jax.lax.stop_gradient(logits.max(axis=-1)))
        unscaled = jnp.exp(logits - peak[:, None])
        scale = over_tensor(jax.lax.psum, unscaled.sum(axis=-1))
        is_label = jnp.arange(vocab) + first == label_N[:, None]
        picked = over_tensor(jax.lax.psum, jnp.where(is_label, logits, 0.0).sum(axis=-1))
        total = carry[0] + jnp.sum((jnp.log(scale) + peak - picked) * weight_N)
        if not gradients:
            return (total,), None
        d_logits = (unscaled / scale[:, None] - is_label) * weight_N[:, None]
        d_bias = carry[2] + d_logits.sum(axis=0)
        d_logits = d_logits.astype(dtype)
        d_x = jnp.einsum("rv,vd->rd", d_logits, table_VD, preferred_element_type=jnp.float32)
        d_table = carry[1] + jnp.einsum(
            "rv,rd->vd", d_logits, x_ND, preferred_element_type=jnp.float32
        )
        return (total, d_table, d_bias), over_tensor(jax.lax.psum, d_x).astype(dtype)

    start: tuple[Any, ...] = (jnp.zeros(()),)
    if gradients:
        start += (jnp.zeros((vocab, width)), jnp.zeros(vocab))
    carry, d_blocks = jax.lax.scan(
        one_block, start, (in_blocks(hidden), in_blocks(labels), in_blocks(weights))
    )
    if not gradients:
        return (carry[0] if axes is None else jax.lax.psum(carry[0], BATCH_AXES),)
    total, d_table, d_bias = carry
    d_hidden = d_blocks.reshape(blocks * size, width)[:rows].reshape(hidden.shape)
    if axes is not None:
        total, d_bias = jax.lax.psum((total, d_bias), BATCH_AXES)
        d_table = jax.lax.psum_scatter(d_table, "fsdp", scatter_dimension=1, tiled=True)
        d_table = jax.lax.psum(d_table, "data")
    return total, d_hidden, d_table.astype(table.dtype), d_bias.astype(bias.dtype)
