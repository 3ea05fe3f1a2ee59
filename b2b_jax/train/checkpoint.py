"""Orbax checkpoints of runs (effects: files)."""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from b2b_jax.train.config import CheckpointConfig
from b2b_jax.train.state import TrainState

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
        return checkpoint_meta(self._manager, step)

    def wait(self) -> None:
        """Block until everything is on disk."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finish writing and let go of the folder."""
        self._manager.close()


def checkpoint_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The JSON values of one checkpoint.

    Raises:
        CheckpointError: if another version of the package wrote them.
    """
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
