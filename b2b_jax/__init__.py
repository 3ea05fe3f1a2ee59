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

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from b2b_jax.axes import Axes, AxisError
from b2b_jax.convert import ConvertError
from b2b_jax.evaluate import VerifyReport, calibrate, verify
from b2b_jax.growth import (
    GrowthError,
    GrowthPlan,
    IndexMap,
    NormCalibration,
    compose_plans,
    copy_distances,
    grow,
    grow_optimizer_state,
    learning_rate_scale,
    mean_pad_epsilon,
    plan_growth,
    shrink,
)
from b2b_jax.models import Compute, ConfigError, Model, ModelConfig, build_model, preset
from b2b_jax.tree import flatten, stack_layers, unflatten, unstack_layers
from b2b_jax.types import Params

__all__ = [
    "Axes",
    "AxisError",
    "Compute",
    "ConfigError",
    "ConvertError",
    "GrowthError",
    "GrowthPlan",
    "IndexMap",
    "Model",
    "ModelConfig",
    "NormCalibration",
    "Params",
    "VerifyReport",
    "build_model",
    "calibrate",
    "compose_plans",
    "copy_distances",
    "flatten",
    "grow",
    "grow_optimizer_state",
    "learning_rate_scale",
    "load",
    "mean_pad_epsilon",
    "plan_growth",
    "preset",
    "save",
    "shrink",
    "stack_layers",
    "unflatten",
    "unstack_layers",
    "verify",
]


def load(path: str | Path) -> tuple[ModelConfig, Params]:
    """Read a model from a Hugging Face folder, or the newest of a ``b2b`` folder.

    Args:
        path: the folder.

    Returns:
        its config and its parameters: float32 from a ``b2b`` folder, the dtypes of the file from a
        Hugging Face folder.

    Raises:
        CheckpointError: if a ``b2b`` folder holds no model.
        ConvertError: if a Hugging Face folder cannot be read; lists every reason.
    """
    from b2b_jax.train.saved import load_model

    saved = load_model(path)
    return saved.config, saved.params


def save(path: str | Path, cfg: ModelConfig, params: Mapping[str, Any]) -> None:
    """Write a model as a Hugging Face folder that ``transformers`` loads.

    A folder that holds a model (a config.json) is replaced whole; any other that is not empty is
    refused. Weights are written as safetensors with the dtypes of the
    parameters; tokenizer files are not written, since parameters know nothing of them.

    Args:
        path: the folder.
        cfg: sizes and constants.
        params: nested dict of arrays.

    Raises:
        ConvertError: if no class of ``transformers`` has the model's heads, or the folder holds
            something else than a model.

    Example:
        >>> import tempfile
        >>> import jax
        >>> cfg = preset("bert-tiny").replace(num_hidden_layers=1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(f"{folder}/model", cfg, build_model(cfg).init(jax.random.key(0)))
        ...     load(f"{folder}/model")[0] == cfg
        True
    """
    from b2b_jax.convert import save_folder

    folder = Path(path)
    is_filled = folder.exists() and (not folder.is_dir() or any(folder.iterdir()))
    if is_filled and not (folder / "config.json").exists():
        raise ConvertError(
            f"{path}: holds no model (no config.json) and would be lost; save to a new folder"
        )
    save_folder(path, cfg, params)
