"""Transformer parts shared by the model families, as Flax Linen modules with stable names.

Shape suffixes: B batch, T tokens, D residual width, H heads, K head width, F neurons, V vocabulary.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Bool, Float, Int

from b2b_jax.models.attention_kernels import HEADS, AttentionChoice, Spread, alone, attend
from b2b_jax.models.config import Activation, ModelConfig

Remat = Literal["none", "dots", "full"]
Place = Callable[[Array, tuple[str | None, ...]], Array]
"""``(activation, names of its axes) -> the same activation``, held in its shards of a mesh."""
RESIDUAL = ("batch", "tokens", "embed")
REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}
ACTIVATIONS: dict[Activation, Callable[[Array], Array]] = {
    "gelu": lambda x: jax.nn.gelu(x, approximate=False),
    "gelu_new": lambda x: jax.nn.gelu(x, approximate=True),
    "relu": jax.nn.relu,
}


@dataclass(frozen=True)
class Compute:
    """How a model is computed; changes speed and rounding, never parameters."""

    dtype: Literal["float32", "bfloat16"] = "float32"
    """Activations and matrix products; parameters stay float32."""
    attention: AttentionChoice = "auto"
    """Kernel: xla anywhere; cudnn on NVIDIA GPUs, in bfloat16; splash on TPUs, for sequences of a
    multiple of 128 tokens; auto takes one of the last two where it can be. None of them drops
    probabilities: with attention_probs_dropout_prob above 0 training does without them."""
    remat: Remat = "none"
    """What the backward pass recomputes: nothing, everything but matrix products, or all."""
    scan_unroll: int = 1
    """Layers per iteration of the scan over layers; larger compiles slower and may run faster."""


def anywhere(x: Array, axes: tuple[str | None, ...]) -> Array:
    """Leave it to the compiler where an activation lies."""
    del axes
    return x


def kernel_init(std: float) -> nn.initializers.Initializer:
    """Normal initialisation truncated at two deviations of ``std``, as BERT does."""
    return nn.initializers.truncated_normal(std)


def layer_norm(cfg: ModelConfig, compute: Compute, name: str) -> nn.LayerNorm:
    """LayerNorm with float32 statistics."""
    return nn.LayerNorm(epsilon=cfg.layer_norm_eps, dtype=jnp.dtype(compute.dtype), name=name)


class SelfAttention(nn.Module):
    """Multi-head self-attention (bert2BERT, Eq. 2)."""

    cfg: ModelConfig
    compute: Compute
    causal: bool
    residual_std: float
    place: Place = anywhere
    spread: Spread = alone

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        mask_BT: Bool[Array, "B T"] | None,
        deterministic: bool,
    ) -> Float[Array, "B T D"]:
        cfg = self.cfg
        dtype = jnp.dtype(self.compute.dtype)

        def project(name: str) -> Float[Array, "B T H K"]:
            dense = nn.DenseGeneral(
                (cfg.num_attention_heads, cfg.head_dim),
                dtype=dtype,
                kernel_init=kernel_init(cfg.initializer_range),
                name=name,
            )
            return self.place(dense(x_BTD), HEADS)

        q_BTHK, k_BTHK, v_BTHK = project("query"), project("key"), project("value")
        if deterministic or cfg.attention_probs_dropout_prob == 0:
            mixed_BTHK = attend(
                q_BTHK,
                k_BTHK,
                v_BTHK,
                mask_BT,
                kernel=self.compute.attention,
                causal=self.causal,
                spread=self.spread,
            )
        else:
            # No kernel has dropout of probabilities.
            mask = None if mask_BT is None else mask_BT[:, None, None, :]
            if self.causal:
                tokens = x_BTD.shape[1]
                triangle = jnp.tril(jnp.ones((1, 1, tokens, tokens), bool))
                mask = triangle if mask is None else mask & triangle
            mixed_BTHK = nn.dot_product_attention(
                q_BTHK,
                k_BTHK,
                v_BTHK,
                mask=mask,
                dropout_rng=self.make_rng("dropout"),
                dropout_rate=cfg.attention_probs_dropout_prob,
                broadcast_dropout=False,
                dtype=dtype,
                force_fp32_for_softmax=True,
            )
        return nn.DenseGeneral(
            cfg.hidden_size,
            axis=(-2, -1),
            dtype=dtype,
            kernel_init=kernel_init(self.residual_std),
            name="out",
        )(self.place(mixed_BTHK, HEADS))


class Mlp(nn.Module):
    """Feed-forward block (bert2BERT, Eq. 3)."""

    cfg: ModelConfig
    compute: Compute
    residual_std: float
    place: Place = anywhere

    @nn.compact
    def __call__(self, x_BTD: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
        cfg, dtype = self.cfg, jnp.dtype(self.compute.dtype)
        up = nn.Dense(
            cfg.intermediate_size,
            dtype=dtype,
            kernel_init=kernel_init(cfg.initializer_range),
            name="up",
        )
        down = nn.Dense(
            cfg.hidden_size, dtype=dtype, kernel_init=kernel_init(self.residual_std), name="down"
        )
        x_BTF = self.place(up(x_BTD), ("batch", "tokens", "mlp"))
        return down(ACTIVATIONS[cfg.hidden_act](x_BTF))


class Block(nn.Module):
    """One transformer layer, pre-norm or post-norm as the family has it."""

    cfg: ModelConfig
    compute: Compute
    place: Place = anywhere
    spread: Spread = alone

    @nn.compact
    def __call__(
        self,
        x_BTD: Float[Array, "B T D"],
        mask_BT: Bool[Array, "B T"] | None,
        deterministic: bool,
    ) -> Float[Array, "B T D"]:
        cfg, compute = self.cfg, self.compute
        pre = cfg.norm_position == "pre"
        std = cfg.initializer_range
        residual_std = std / (2 * cfg.num_hidden_layers) ** 0.5 if pre else std
        attention = SelfAttention(
            cfg, compute, pre, residual_std, self.place, self.spread, name="attention"
        )
        mlp = Mlp(cfg, compute, residual_std, self.place, name="mlp")
        attention_norm = layer_norm(cfg, compute, "attention_norm")
        mlp_norm = layer_norm(cfg, compute, "mlp_norm")
        drop = nn.Dropout(cfg.hidden_dropout_prob, deterministic=deterministic)
        if pre:
            x_BTD = x_BTD + drop(attention(attention_norm(x_BTD), mask_BT, deterministic))
            return x_BTD + drop(mlp(mlp_norm(x_BTD)))
        x_BTD = attention_norm(x_BTD + drop(attention(x_BTD, mask_BT, deterministic)))
        return mlp_norm(x_BTD + drop(mlp(x_BTD)))


class Table(nn.Module):
    """A lookup table that can also be read as a matrix."""

    rows: int
    width: int
    std: float

    @nn.compact
    def __call__(self, ids: Int[Array, "..."], dtype: Any) -> Float[Array, "... D"]:
        table = self.param("embedding", kernel_init(self.std), (self.rows, self.width))
        return jnp.take(table.astype(dtype), ids, axis=0)


class Embeddings(nn.Module):
    """Token plus learned position embeddings; BERT adds segment types and a LayerNorm."""

    cfg: ModelConfig
    compute: Compute

    @nn.compact
    def __call__(
        self,
        input_ids: Int[Array, "B T"],
        token_type_ids: Int[Array, "B T"] | None,
        deterministic: bool,
    ) -> Float[Array, "B T D"]:
        cfg, dtype = self.cfg, jnp.dtype(self.compute.dtype)
        std, width = cfg.initializer_range, cfg.hidden_size
        longest = cfg.max_position_embeddings - cfg.position_offset
        if input_ids.shape[-1] > longest:
            raise ValueError(
                f"{input_ids.shape[-1]} tokens per sequence, but the model has positions for "
                f"{longest} (max_position_embeddings = {cfg.max_position_embeddings})"
            )
        if cfg.family == "roberta":
            # Counts the tokens that are no padding; padding reads its own row.
            real = (input_ids != cfg.pad_token_id).astype(input_ids.dtype)
            positions = cfg.pad_token_id + jnp.cumsum(real, axis=-1) * real
        else:
            positions = jnp.arange(input_ids.shape[-1])[None]
        x_BTD = Table(cfg.vocab_size, width, std, name="token")(input_ids, dtype)
        position = Table(
            cfg.max_position_embeddings, width, std / 2 if cfg.is_causal else std, name="position"
        )
        x_BTD = x_BTD + position(positions, dtype)
        if not cfg.is_causal:
            types = jnp.zeros_like(input_ids) if token_type_ids is None else token_type_ids
            token_type = Table(cfg.type_vocab_size, width, std, name="token_type")
            x_BTD = layer_norm(cfg, self.compute, "norm")(x_BTD + token_type(types, dtype))
        return nn.Dropout(cfg.hidden_dropout_prob, deterministic=deterministic)(x_BTD)
