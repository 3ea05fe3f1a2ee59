"""Orbax checkpoints of runs and models (effects: files)."""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from b2b_jax.axes import shapes
from b2b_jax.models import ModelConfig
from b2b_jax.train.config import CheckpointConfig
from b2b_jax.train.state import TrainState
from b2b_jax.tree import flatten, unflatten
from b2b_jax.types import Params

FORMAT = 1
FOLDER = "checkpoints"


class CheckpointError(ValueError):
    """A folder does not hold the checkpoint that was asked for."""


class Checkpoints:
    """The checkpoints of one run: written in the background, newest and best are kept.

    Each holds three items: ``params``, ``optimizer`` (with the step) and ``meta`` (JSON: format,
    model, run configuration, growth plan, data position and everything else that a run carries).
    """

    def __init__(self, run_dir: str | Path, config: CheckpointConfig) -> None:
        policies: list[Any] = [preservation_policy.LatestN(n=config.keep_last)]
        if config.keep_best:
            policies.append(
                preservation_policy.BestN(
                    get_metric_fn=lambda metrics: metrics["heldout_loss"],
                    reverse=True,
                    n=config.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        logging.getLogger("absl").setLevel(logging.ERROR)
        self._manager = ocp.CheckpointManager(
            (Path(run_dir) / FOLDER).absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                enable_async_checkpointing=True,
            ),
            item_names=("params", "optimizer", "meta"),
        )

    def latest_step(self) -> int | None:
        """The newest finished checkpoint; one that was cut off while being written is none."""
        return self._manager.latest_step()

    def steps(self) -> list[int]:
        """All checkpoints that are kept, oldest first."""
        return sorted(self._manager.all_steps())

    def save(
        self,
        state: TrainState,
        meta: Mapping[str, Any],
        *,
        step: int,
        heldout_loss: float | None = None,
    ) -> None:
        """Start writing a checkpoint; training may go on at once, also when it donates the state.

        Args:
            state: what to write.
            meta: JSON values.
            step: the checkpoint's number.
            heldout_loss: for keeping the best.
        """
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(state.params),  # pyright: ignore
                optimizer=ocp.args.StandardSave(  # pyright: ignore
                    {"step": state.step, "state": state.opt_state}
                ),
                meta=ocp.args.JsonSave({"format": FORMAT, **meta}),  # pyright: ignore
            ),
            metrics=None if heldout_loss is None else {"heldout_loss": heldout_loss},
            force=True,
        )

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Read a state into the shapes, dtypes and shardings of an abstract one."""
        restored = self._manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(abstract.params),  # pyright: ignore
                optimizer=ocp.args.StandardRestore(  # pyright: ignore
                    {"step": abstract.step, "state": abstract.opt_state}
                ),
            ),
        )
        optimizer = restored["optimizer"]
        return TrainState(optimizer["step"], restored["params"], optimizer["state"])

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON values that were saved with a checkpoint."""
        return _read_meta(self._manager, step)

    def wait(self) -> None:
        """Block until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish writing and let go of the folder."""
        self._manager.close()


def _read_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    meta = manager.restore(
        step,
        args=ocp.args.Composite(meta=ocp.args.JsonRestore()),  # pyright: ignore
    )["meta"]
    if meta.get("format") != FORMAT:
        raise CheckpointError(
            f"{manager.directory}/{step}: checkpoint format {meta.get('format')}, this version "
            f"of b2b_jax reads {FORMAT}; it was written by {meta.get('library_version')}"
        )
    return meta


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


def fingerprint(params: Mapping[str, Any]) -> str:
    """The sha256 of all parameters, bytes and paths, in path order."""
    digest = hashlib.sha256()
    for path, leaf in flatten(params).items():
        digest.update(path.encode())
        digest.update(np.ascontiguousarray(leaf).tobytes())
    return digest.hexdigest()


def _open(path: Path) -> tuple[ocp.CheckpointManager, int]:
    folder = path if path.name == FOLDER else path / FOLDER
    if not folder.is_dir():
        found = "no such folder" if not path.exists() else "no checkpoints/ folder in it"
        raise CheckpointError(
            f"{path}: {found}; expected the folder of a b2b train or b2b grow run"
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
    """What the newest checkpoint of a folder says about itself, without reading any parameter.

    Raises:
        CheckpointError: if the folder holds no checkpoint.
    """
    manager, step = _open(Path(path))
    return {**_read_meta(manager, step), "step": step}


def load_model(path: str | Path) -> SavedModel:
    """Read the newest model of a run folder or grown folder.

    Args:
        path: the folder, or its ``checkpoints`` folder.

    Raises:
        CheckpointError: if there is none, or it does not fit its own config.
    """
    manager, step = _open(Path(path))
    meta = _read_meta(manager, step)
    config = ModelConfig.from_dict(meta["model"])
    device = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
    abstract = {
        leaf_path: jax.ShapeDtypeStruct(shape, np.float32, sharding=device)
        for leaf_path, shape in shapes(config.axis_table(), config.axis_sizes()).items()
    }
    try:
        params = manager.restore(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardRestore(unflatten(abstract))  # pyright: ignore
            ),
        )["params"]
    except (ValueError, KeyError, OSError) as error:
        raise CheckpointError(f"{path}: step {step} cannot be read: {error}") from error
    return SavedModel(config, params, meta, step, fingerprint(params))


def save_model(
    path: str | Path, config: ModelConfig, params: Params, *, meta: Mapping[str, Any]
) -> None:
    """Write parameters as checkpoint 0 of a folder that `load_model` reads.

    Args:
        path: the folder; made if missing.
        config: sizes and constants.
        params: nested dict of arrays.
        meta: further JSON values to keep with them.
    """
    manager = ocp.CheckpointManager(
        (Path(path) / FOLDER).absolute(), item_names=("params", "optimizer", "meta")
    )
    manager.save(
        0,
        args=ocp.args.Composite(
            params=ocp.args.StandardSave(params),  # pyright: ignore
            meta=ocp.args.JsonSave(  # pyright: ignore
                {"format": FORMAT, "model": config.to_dict(), **json.loads(json.dumps(meta))}
            ),
        ),
        force=True,
    )
    manager.wait_until_finished()
    manager.close()
