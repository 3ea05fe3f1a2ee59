"""Models in folders, of a run, grown or Hugging Face's: one function reads all (effects: files)."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from jax.sharding import SingleDeviceSharding

from b2b_jax.axes import shapes
from b2b_jax.convert import is_hf_folder, open_folder
from b2b_jax.convert.match import InitMissing
from b2b_jax.models import ModelConfig
from b2b_jax.train.arrays import host_device
from b2b_jax.train.checkpoint import FOLDER
from b2b_jax.train.checksums import tree_checksums
from b2b_jax.train.stored import (
    CheckpointError,
    checkpoint_meta,
    naming_older,
    restore_items,
    sealed,
)
from b2b_jax.tree import flatten, unflatten
from b2b_jax.types import Params


@dataclass(frozen=True)
class SavedModel:
    """A model read from a run or a grown folder.

    Attributes:
        config: sizes and constants.
        params: nested dict of arrays.
        meta: what else the checkpoint says about itself.
        step: the checkpoint's number.
        fingerprint: sha256 over all parameters, in path order.
    """

    config: ModelConfig
    params: Params
    meta: dict[str, Any]
    step: int
    fingerprint: str


def parameter_fingerprint(params: Mapping[str, Any]) -> str:
    """The sha256 of all parameters, bytes and paths, in path order."""
    digest = hashlib.sha256()
    for path, leaf in flatten(params).items():
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def open_checkpoints(path: Path) -> tuple[ocp.CheckpointManager, int]:
    """Open the checkpoints of a folder for reading, and find the newest step.

    Raises:
        CheckpointError: if there is none.
    """
    folder = path if path.name == FOLDER else path / FOLDER
    if not folder.is_dir():
        found = "no such folder" if not path.exists() else "no checkpoints/ folder in it"
        raise CheckpointError(
            f"{path}: {found}; expected the folder of a b2b train or b2b grow run, or a Hugging "
            "Face folder with a config.json that says its model_type"
        )
    logging.getLogger("absl").setLevel(logging.ERROR)
    manager = ocp.CheckpointManager(
        folder.absolute(),
        options=ocp.CheckpointManagerOptions(read_only=True),
        item_names=("params", "optimizer", "meta"),
    )
    step = manager.latest_step()
    if step is None:
        raise CheckpointError(f"{folder}: holds no finished checkpoint; train it further first")
    return manager, step


def read_meta(path: str | Path) -> dict[str, Any]:
    """What the newest model of a folder says about itself, without reading any parameter.

    Raises:
        CheckpointError: if the folder holds no checkpoint.
        ConvertError: if it is a Hugging Face folder that cannot be read.
    """
    if is_hf_folder(path):
        folder = open_folder(path)
        return {"model": folder.config.to_dict(), "lineage": read_lineage(path), "step": 0}
    manager, step = open_checkpoints(Path(path))
    with naming_older(manager, step):
        return {**checkpoint_meta(manager, step), "step": step}


def read_lineage(path: str | Path) -> dict[str, Any]:
    """How the model of a folder came about, as far as its lineage.json and growth_plan.json say."""
    found: dict[str, Any] = {}
    for name in ("lineage.json", "growth_plan.json"):
        try:
            values = json.loads((Path(path) / name).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if not isinstance(values, dict):
            continue
        found |= values if name == "lineage.json" else {"growth_plan": values}
    return found


def total_cost(meta: Mapping[str, Any]) -> dict[str, Any]:
    """What a model has cost so far: its own training and that of everything it was grown from.

    Args:
        meta: of its checkpoint.

    Returns:
        ``flops`` by accounting and ``seconds``; None where a part of them is not known.
    """
    lineage, own = meta.get("lineage", {}), meta.get("progress")
    parts = [] if own is None else [(own["flops"], own["seconds"])]
    if own is None or "source" in lineage:
        parts.append((lineage.get("source_flops"), lineage.get("source_seconds")))
    # A teacher that is also what the model was grown from was trained once.
    taught_by = lineage.get("teacher_fingerprint")
    if taught_by is not None and taught_by != lineage.get("source_fingerprint"):
        parts.append((lineage.get("teacher_flops"), lineage.get("teacher_seconds")))
    flops, seconds = [part[0] for part in parts], [part[1] for part in parts]
    return {
        "flops": None
        if None in flops
        else {name: sum(part[name] for part in flops) for name in flops[0]},
        "seconds": None if None in seconds else sum(seconds),
    }


def load_model(
    path: str | Path,
    *,
    heads: tuple[str, ...] | None = None,
    init_missing: InitMissing = "nothing",
    step: int | None = None,
) -> SavedModel:
    """Read a model of a run folder, a grown folder or a Hugging Face folder.

    Its arrays are numpy's: a model that devices hold in shards may be too large for one of them.

    Args:
        path: the folder, or its ``checkpoints`` folder.
        heads: output heads wanted of a Hugging Face folder, instead of those of its class.
        init_missing: "head" makes heads fresh that a Hugging Face folder lacks.
        step: which of a run's checkpoints; the newest by default.

    Raises:
        CheckpointError: if there is none, or it does not fit its own config.
        ConvertError: if it is a Hugging Face folder that cannot be read.
    """
    if is_hf_folder(path):
        folder = open_folder(path, heads=heads, init_missing=init_missing)
        params = jax.tree.map(np.asarray, folder.params())
        meta = {"lineage": read_lineage(path), "notes": folder.notes()}
        return SavedModel(folder.config, params, meta, 0, parameter_fingerprint(params))
    manager, newest = open_checkpoints(Path(path))
    step = newest if step is None else step
    with naming_older(manager, step):
        meta, params = _read(manager, step)
    config = ModelConfig.from_dict(meta["model"])
    return SavedModel(config, params, meta, step, parameter_fingerprint(params))


def check_model(path: str | Path, *, step: int) -> None:
    """Make sure that the parameters of a run's checkpoint are what was written.

    Raises:
        DamagedCheckpoint: if they are not.
    """
    manager, _ = open_checkpoints(Path(path))
    _read(manager, step)


def _read(manager: ocp.CheckpointManager, step: int) -> tuple[dict[str, Any], Params]:
    """What a checkpoint says about itself, and its parameters in the host's memory."""
    meta = checkpoint_meta(manager, step)
    config = ModelConfig.from_dict(meta["model"])
    where = SingleDeviceSharding(host_device())
    abstract = {
        leaf_path: jax.ShapeDtypeStruct(shape, np.float32, sharding=where)
        for leaf_path, shape in shapes(config.axis_table(), config.axis_sizes()).items()
    }
    restored = restore_items(manager, step, {"params": unflatten(abstract)})
    return meta, jax.device_get(restored["params"])


def save_model(
    path: str | Path, config: ModelConfig, params: Params, *, meta: Mapping[str, Any]
) -> None:
    """Write parameters, as float32, as checkpoint 0 of a folder that `load_model` reads.

    Args:
        path: the folder; made if missing.
        config: sizes and constants.
        params: nested dict of arrays.
        meta: further JSON values to keep with them.
    """
    manager = ocp.CheckpointManager(
        (Path(path) / FOLDER).absolute(), item_names=("params", "optimizer", "meta")
    )
    with jax.default_device(host_device()):
        params = jax.tree.map(jnp.asarray, in_float32(params))
    record = {
        **meta,
        "model": config.to_dict(),
        "fingerprint": parameter_fingerprint(params),
        "checksums": {"params": tree_checksums(params)},
    }
    manager.save(
        0,
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(params),  # pyright: ignore
            meta=ocp.args.JsonSave(sealed(record)),  # pyright: ignore
        ),
        force=True,
    )
    manager.wait_until_finished()
    manager.close()


def in_float32(params: Params) -> Params:
    """Parameters as training holds them, in the host's memory."""
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params)
