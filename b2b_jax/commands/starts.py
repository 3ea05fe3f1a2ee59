"""The target of a comparison and its random first parameters (effects: files)."""

from pathlib import Path

import jax

from b2b_jax.commands.folders import write_yaml
from b2b_jax.convert.writing import new_folder
from b2b_jax.growth.fresh import fresh_leaf
from b2b_jax.models import ModelConfig, build_model
from b2b_jax.train.saved import save_model
from b2b_jax.tree import unflatten
from b2b_jax.types import Params


def random_params(cfg: ModelConfig, *, seed: int) -> Params:
    """Fresh parameters: those that DirectCopy with this seed leaves where it copies nothing."""
    model, key = build_model(cfg), jax.random.key(seed)
    return unflatten(
        {
            path: fresh_leaf(path, model.axes[path], shape, key=key)
            for path, shape in model.shapes.items()
        }
    )


def write_random_start(folder: str | Path, cfg: ModelConfig, *, seed: int) -> None:
    """Write a random target as a folder to start from, whole or not at all, unless it is there."""
    if Path(folder).exists():
        return
    with new_folder(Path(folder)) as temporary:
        save_model(temporary, cfg, random_params(cfg, seed=seed), meta={"lineage": {}})


def write_target(root: Path, cfg: ModelConfig) -> None:
    """Write the target's config where `b2b grow` reads it."""
    write_yaml(root / "target.yaml", {"model": _plain(cfg)})


def _plain(cfg: ModelConfig) -> dict:
    return {
        name: list(value) if isinstance(value, tuple) else value
        for name, value in cfg.to_dict().items()
    }
