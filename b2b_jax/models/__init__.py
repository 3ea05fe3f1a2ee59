"""BERT and GPT-2 in Flax Linen, with stacked layers."""

from b2b_jax.models.attention import with_attention
from b2b_jax.models.attention_kernels import Spread, alone, attention_problems, resolve_attention
from b2b_jax.models.build import build_model
from b2b_jax.models.config import ConfigError, ModelConfig, preset
from b2b_jax.models.heads import Decoder
from b2b_jax.models.layers import Compute, Place
from b2b_jax.models.model import Model
from b2b_jax.models.norms import with_norm_inputs, with_weighted_norms

__all__ = [
    "Compute",
    "ConfigError",
    "Decoder",
    "Model",
    "ModelConfig",
    "Place",
    "Spread",
    "alone",
    "attention_problems",
    "build_model",
    "preset",
    "resolve_attention",
    "with_attention",
    "with_norm_inputs",
    "with_weighted_norms",
]
