"""What a run starts from: parameters and moments of other folders (effects: files)."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import Mesh, SingleDeviceSharding

from b2b_jax.axes import shapes
from b2b_jax.convert import is_hf_folder
from b2b_jax.growth import GrowthPlan
from b2b_jax.models import ModelConfig
from b2b_jax.train.arrays import host_device, put_everywhere
from b2b_jax.train.optim import OptimizerConfig, make_optimizer
from b2b_jax.train.saved import open_checkpoints, parameter_fingerprint
from b2b_jax.train.sharding import fitting_shardings, optimizer_shardings
from b2b_jax.train.stored import CheckpointError, checkpoint_meta, naming_older, restore_items
from b2b_jax.tree import flatten, unflatten
from b2b_jax.types import Params


def load_params(path: str | Path, *, step: int, shardings: Params) -> Params:
    """Read the parameters of one step of a run or grown folder straight into their shards.

    No process reads more than its devices hold.

    Args:
        path: the folder.
        step: which of its checkpoints.
        shardings: nested dict, like the parameters.

    Raises:
        CheckpointError: if it is gone, or holds another model.
    """
    manager, _ = open_checkpoints(Path(path))
    _check_has(path, manager, step)
    with naming_older(manager, step):
        meta = checkpoint_meta(manager, step)
    config = ModelConfig.from_dict(meta["model"])
    where = flatten(shardings)
    abstract = {
        leaf_path: jax.ShapeDtypeStruct(shape, np.float32, sharding=where[leaf_path])
        for leaf_path, shape in shapes(config.axis_table(), config.axis_sizes()).items()
    }
    with naming_older(manager, step):
        return restore_items(manager, step, {"params": unflatten(abstract)})["params"]


def load_optimizer(path: str | Path, *, step: int, fingerprint: str) -> Any:
    """Read the optimizer state of one step of a run, whole, into memory of the host.

    Args:
        path: folder of the run.
        step: which of its checkpoints.
        fingerprint: of the parameters that the state must belong to.

    Raises:
        CheckpointError: if the folder holds no such state.
    """
    if is_hf_folder(path):
        raise CheckpointError(f"{path}: a Hugging Face folder holds no optimizer state")
    manager, _ = open_checkpoints(Path(path))
    _check_has(path, manager, step)
    meta = checkpoint_meta(manager, step)
    if "config" not in meta:
        raise CheckpointError(f"{path}: was not trained by b2b train, and has no optimizer state")
    known = {field.name for field in dataclasses.fields(OptimizerConfig)}
    settings = {name: value for name, value in meta["config"]["optimizer"].items() if name in known}
    config = ModelConfig.from_dict(meta["model"])
    stored = meta.get("lineage", {}).get("growth_plan")
    optimizer = make_optimizer(
        OptimizerConfig(**settings),
        config.axis_table(),
        total_steps=1,
        plan=None if stored is None else GrowthPlan.from_json(json.dumps(stored)),
    )
    device = SingleDeviceSharding(host_device())
    params = {
        leaf: jax.ShapeDtypeStruct(shape, np.float32)
        for leaf, shape in shapes(config.axis_table(), config.axis_sizes()).items()
    }
    abstract = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=device),
        {
            "step": jax.ShapeDtypeStruct((), np.int32),
            "state": jax.eval_shape(optimizer.init, unflatten(params)),
        },
    )
    on_device = {
        leaf: jax.ShapeDtypeStruct(entry.shape, entry.dtype, sharding=device)
        for leaf, entry in params.items()
    }
    wanted = {"params": unflatten(on_device), "optimizer": abstract}
    restored = restore_items(manager, step, wanted)
    if parameter_fingerprint(restored["params"]) != fingerprint:
        raise CheckpointError(f"{path}: step {step} holds other parameters than those that grew")
    return jax.device_get(restored["optimizer"]["state"])


def _check_has(path: str | Path, manager: ocp.CheckpointManager, step: int) -> None:
    if step not in manager.all_steps():
        raise CheckpointError(
            f"{path}: the checkpoint of step {step} is gone, found {sorted(manager.all_steps())}"
        )


def put_moments(opt_state: Any, plan: GrowthPlan, *, mesh: Mesh) -> Any:
    """Optimizer state of a plan's source, that every process has, in shards as far as they divide.

    Args:
        opt_state: what `load_optimizer` read.
        plan: what grew the source.
        mesh: the device mesh.
    """
    like = unflatten(
        {
            path: jax.ShapeDtypeStruct(shape, np.float32)
            for path, shape in plan.source_shapes.items()
        }
    )
    params = unflatten(fitting_shardings(plan.axes, plan.source_shapes, mesh=mesh))
    shardings = optimizer_shardings(opt_state, like, params, mesh=mesh)
    return jax.tree.map(put_everywhere, opt_state, shardings)
