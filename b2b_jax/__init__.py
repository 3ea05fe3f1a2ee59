"""Grow a trained transformer into a larger one: bert2BERT (Chen et al., ACL 2022) in JAX.

The growth functions are pure and act on nested dicts of arrays:

    >>> import jax
    >>> import b2b_jax as b2b
    >>> small = b2b.preset("bert-tiny").replace(num_hidden_layers=2)
    >>> large = small.replace(hidden_size=192, num_attention_heads=6, intermediate_size=768)
    >>> params = b2b.build_model(small).init(jax.random.key(0))
    >>> grown = b2b.grow(params, b2b.plan_growth(small, large, method="aki"))
    >>> grown["layers"]["mlp"]["up"]["kernel"].shape
    (2, 192, 768)
"""

from pathlib import Path

from b2b_jax.evaluate import VerifyReport, verify
from b2b_jax.growth import GrowthError, GrowthPlan, IndexMap, grow, plan_growth, shrink
from b2b_jax.models import Compute, ConfigError, Model, ModelConfig, build_model, preset
from b2b_jax.types import Params

__all__ = [
    "Compute",
    "ConfigError",
    "GrowthError",
    "GrowthPlan",
    "IndexMap",
    "Model",
    "ModelConfig",
    "Params",
    "VerifyReport",
    "build_model",
    "grow",
    "load",
    "plan_growth",
    "preset",
    "shrink",
    "verify",
]


def load(path: str | Path) -> tuple[ModelConfig, Params]:
    """Read the newest model of a folder that ``b2b train`` or ``b2b grow`` wrote.

    Args:
        path: the folder.

    Returns:
        its config and its parameters, float32.

    Raises:
        CheckpointError: if the folder holds no model.
    """
    from b2b_jax.train.checkpoint import load_model

    saved = load_model(path)
    return saved.config, saved.params
