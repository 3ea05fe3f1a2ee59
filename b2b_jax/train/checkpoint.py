"""Orbax checkpoints of runs (effects: files)."""

import contextlib
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from b2b_jax.train.checksums import tree_checksums
from b2b_jax.train.config import CheckpointConfig
from b2b_jax.train.state import TrainState
from b2b_jax.train.stored import DamagedCheckpoint, checkpoint_meta, restore_items, sealed

FOLDER = "checkpoints"
UNFINISHED = ".orbax-checkpoint-tmp"


class Checkpoints:
    """The checkpoints of one run: written in the background, newest and best are kept.

    Each holds three items: ``params``, ``optimizer`` (with the step) and ``meta`` (JSON: format,
    model, run configuration, growth plan, data position, the checksum of every array and everything
    else that a run carries).
    """

    def __init__(self, run_dir: str | Path, config: CheckpointConfig) -> None:
        policies: list[Any] = [preservation_policy.LatestN(n=config.keep_last)]
        if config.keep_best:
            policies.append(
                preservation_policy.BestN(
                    get_metric_fn=_heldout_loss,
                    reverse=True,
                    n=config.keep_best,
                    keep_checkpoints_without_metrics=False,
                )
            )
        _silence_orbax()
        folder = Path(run_dir) / FOLDER
        if jax.process_index() == 0:
            _remove_unfinished(folder)
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            options=ocp.CheckpointManagerOptions(
                preservation_policy=preservation_policy.AnyPreservationPolicy(policies),
                # Makes Orbax keep the losses on disk, so that a continued run knows the best.
                best_fn=_heldout_loss,
                best_mode="min",
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
        items = _items(state)
        sums = {name: tree_checksums(tree) for name, tree in items.items()}
        self._manager.save(
            step,
            args=ocp.args.Composite(
                params=ocp.args.StandardSave(items["params"]),  # pyright: ignore
                optimizer=ocp.args.StandardSave(items["optimizer"]),  # pyright: ignore
                meta=ocp.args.JsonSave(  # pyright: ignore
                    sealed({**meta, "checksums": sums})
                ),
            ),
            metrics=None if heldout_loss is None else {"heldout_loss": heldout_loss},
            force=True,
        )

    def restore(self, step: int, abstract: TrainState) -> TrainState:
        """Read a state into the shapes, dtypes and shardings of an abstract one.

        Raises:
            DamagedCheckpoint: if it cannot be read, or is not what was written.
        """
        items = restore_items(self._manager, step, _items(abstract))
        optimizer = items["optimizer"]
        return TrainState(optimizer["step"], items["params"], optimizer["state"])

    def newest(self) -> tuple[int, dict[str, Any]] | None:
        """The newest checkpoint whose `meta` can be read, and that; None if there is none."""
        for step in reversed(self.steps()):
            with contextlib.suppress(DamagedCheckpoint):
                return step, self.meta(step)
        return None

    def set_aside(self, step: int) -> Path:
        """Rename a damaged checkpoint, so that it neither counts nor is lost."""
        path = Path(self._manager.directory) / str(step)
        number = len(list(path.parent.glob(f"damaged-{step}-*")))
        aside = path.with_name(f"damaged-{step}-{number + 1}")
        try:
            path.rename(aside)
        except FileNotFoundError:  # another process was faster
            aside = path.with_name(f"damaged-{step}-{max(number, 1)}")
        self._manager.reload()
        return aside

    def meta(self, step: int) -> dict[str, Any]:
        """The JSON values that were saved with a checkpoint."""
        return checkpoint_meta(self._manager, step)

    def wait(self) -> None:
        """Block until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish writing and let go of the folder."""
        self._manager.close()


def finished_steps(run_dir: str | Path) -> list[int]:
    """Steps whose checkpoints are whole, oldest first; those cut off carry another name."""
    found = (Path(run_dir) / FOLDER).glob("[0-9]*")
    return sorted(int(path.name) for path in found if path.name.isdigit())


def _silence_orbax() -> None:
    """Keep Orbax from printing traces; its threads hand every error on to whoever waits."""
    logging.getLogger("absl").setLevel(logging.CRITICAL)


def _remove_unfinished(folder: Path) -> None:
    """Make room by what a killed sitting was writing; nobody else writes while a run starts."""
    for path in folder.glob(f"*{UNFINISHED}*"):
        shutil.rmtree(path, ignore_errors=True)


def _heldout_loss(metrics: Any) -> float:
    return metrics["heldout_loss"]


def _items(state: TrainState) -> dict[str, Any]:
    """A state as the items of a checkpoint."""
    optimizer = {"step": state.step, "state": state.opt_state}
    return {"params": state.params, "optimizer": optimizer}
