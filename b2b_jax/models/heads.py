"""What comes after the last layer: language-model heads, pooler, next-sentence head."""

from dataclasses import dataclass

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from b2b_jax.models.config import ModelConfig
from b2b_jax.models.layers import ACTIVATIONS, Compute, kernel_init, layer_norm
from b2b_jax.types import Abstract


class MlmHead(nn.Module):
    """Transform and norm in front of the tied decoder of BERT."""

    cfg: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(self, x_ND: Float[Array, "... D"]) -> Float[Array, "... D"]:
        cfg = self.cfg
        transform = nn.Dense(
            cfg.hidden_size,
            dtype=jnp.dtype(self.compute.dtype),
            kernel_init=kernel_init(cfg.initializer_range),
            name="transform",
        )
        x_ND = ACTIVATIONS[cfg.hidden_act](transform(x_ND))
        return layer_norm(cfg, self.compute, "norm")(x_ND)


@jax.tree_util.register_dataclass
@dataclass(frozen=True)
class Decoder:
    """The matrix that turns hidden states into vocabulary logits: the token table itself.

    Attributes:
        table: float32 ``[V, D]``.
        bias: float32 ``[V]``, or None.
    """

    table: Float[Array, "V D"] | Abstract
    bias: Float[Array, " V"] | Abstract | None

    def logits(self, x_ND: Float[Array, "... D"]) -> Float[Array, "... V"]:
        """Logits in float32; products in the dtype of ``x_ND``."""
        table_VD = self.table.astype(x_ND.dtype)
        logits = jnp.einsum("...d,vd->...v", x_ND, table_VD, preferred_element_type=jnp.float32)
        return logits if self.bias is None else logits + self.bias


class Pooler(nn.Module):
    """Dense tanh layer on the first token."""

    cfg: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B D"]:
        cfg = self.cfg
        dense = nn.Dense(
            cfg.hidden_size,
            dtype=jnp.dtype(self.compute.dtype),
            kernel_init=kernel_init(cfg.initializer_range),
            name="dense",
        )
        return jnp.tanh(dense(x_BTD[:, 0]))


class NspHead(nn.Module):
    """Two-way classifier on the pooled output."""

    cfg: ModelConfig

    @nn.compact
    def __call__(self, pooled_BD: Float[Array, "B D"]) -> Float[Array, "B 2"]:
        classifier = nn.Dense(
            2, kernel_init=kernel_init(self.cfg.initializer_range), name="classifier"
        )
        return classifier(pooled_BD.astype(jnp.float32))


class LinearHead(nn.Module):
    """A float32 linear readout: of the pooled output (classes) or of every token (span ends)."""

    cfg: ModelConfig
    outputs: int

    @nn.compact
    def __call__(self, x_ND: Float[Array, "... D"]) -> Float[Array, "... C"]:
        cfg, shape = self.cfg, (self.cfg.hidden_size, self.outputs)
        kernel_DC = self.param("kernel", kernel_init(cfg.initializer_range), shape)
        bias_C = self.param("bias", nn.initializers.zeros, (self.outputs,))
        return x_ND.astype(jnp.float32) @ kernel_DC + bias_C
