"""Orbax checkpoints of runs (effects: files)."""

import contextlib
import hashlib
import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

from b2b_jax.train.checksums import damaged, tree_checksums
from b2b_jax.train.config import CheckpointConfig
from b2b_jax.train.state import TrainState

FORMAT = 2
READS = (1, 2)
"""Formats that this version reads; 1 has no checksums."""
FOLDER = "checkpoints"
UNFINISHED = ".orbax-checkpoint-tmp"
NOT_THE_FILES = (jax.errors.JaxRuntimeError, MemoryError, PermissionError)
"""What reading may raise although the files are as they were: no memory, no network, no right."""


class CheckpointError(ValueError):
    """A folder does not hold the checkpoint that was asked for."""


class DamagedCheckpoint(CheckpointError):
    """A checkpoint is there, but its files are cut off, missing or changed."""


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


def checkpoint_meta(manager: ocp.CheckpointManager, step: int) -> dict[str, Any]:
    """The JSON values of one checkpoint.

    Raises:
        DamagedCheckpoint: if they cannot be read.
        CheckpointError: if another version of the package wrote them.
    """
    try:
        meta = manager.restore(
            step,
            args=ocp.args.Composite(meta=ocp.args.JsonRestore()),  # pyright: ignore
        )["meta"]
        if not isinstance(meta, dict):
            raise TypeError(f"meta holds a {type(meta).__name__}")
    except NOT_THE_FILES:
        raise
    except Exception as error:  # Orbax raises many kinds for files that are cut off or missing
        raise DamagedCheckpoint(_cannot_be_read(manager, step, error)) from error
    if meta.get("format") == FORMAT and meta.pop("sha256", None) != _digest(meta):
        raise DamagedCheckpoint(
            f"{manager.directory}/{step}/meta: has changed since it was written"
        )
    if meta.get("format") not in READS:
        raise CheckpointError(
            f"{manager.directory}/{step}: checkpoint format {meta.get('format')}, this version "
            f"of b2b_jax reads {' and '.join(map(str, READS))}; it was written by "
            f"{meta.get('library_version')}"
        )
    return meta


def _heldout_loss(metrics: Any) -> float:
    return metrics["heldout_loss"]


def _items(state: TrainState) -> dict[str, Any]:
    """A state as the items of a checkpoint."""
    optimizer = {"step": state.step, "state": state.opt_state}
    return {"params": state.params, "optimizer": optimizer}


def restore_items(
    manager: ocp.CheckpointManager, step: int, abstract: Mapping[str, Any]
) -> dict[str, Any]:
    """Read items of a checkpoint and make sure that they are what was written.

    Args:
        manager: of the folder.
        step: which checkpoint.
        abstract: item -> tree of shapes, dtypes and shardings to read it into.

    Raises:
        DamagedCheckpoint: if an item cannot be read, or an array has another checksum than it had.
    """
    sums = checkpoint_meta(manager, step).get("checksums", {})
    wanted: Any = {name: ocp.args.StandardRestore(tree) for name, tree in abstract.items()}
    try:
        restored = manager.restore(step, args=ocp.args.Composite(**wanted))
    except NOT_THE_FILES:
        raise
    except Exception as error:  # Orbax raises many kinds for files that are cut off or missing
        kind = CheckpointError if _is_of_another_shape(error) else DamagedCheckpoint
        raise kind(_cannot_be_read(manager, step, error)) from error
    items = {name: restored[name] for name in abstract}
    bad = [leaf for name, tree in items.items() for leaf in damaged(tree, sums.get(name, {}))]
    if bad:
        more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
        raise DamagedCheckpoint(
            f"{manager.directory}/{step}: the files have changed since they were written: "
            f"{', '.join(bad[:3])}{more}"
        )
    return items


@contextlib.contextmanager
def naming_older(manager: ocp.CheckpointManager, step: int) -> Iterator[None]:
    """Add to what is damaged which older steps there are and how to get at them.

    They are not read instead: what is grown from, compared or taught by an older model is another
    result, and only a run's own command may decide to train the rest again.

    Raises:
        DamagedCheckpoint: with that.
    """
    try:
        yield
    except DamagedCheckpoint as error:
        older = [str(found) for found in sorted(manager.all_steps()) if found < step]
        way = (
            f"older here: {', '.join(older)}; repeat the b2b train of this run, which sets the "
            "damaged one aside and trains again from the newest that is sound"
            if older
            else "no older one is here; make this folder again"
        )
        raise DamagedCheckpoint(f"{error} ({way})") from error


def _cannot_be_read(manager: ocp.CheckpointManager, step: int, error: Exception) -> str:
    first_line = (str(error).splitlines() or [type(error).__name__])[0]
    return f"{manager.directory}/{step}: cannot be read: {first_line}"


def _is_of_another_shape(error: Exception) -> bool:
    """Whether Orbax complains of what it was asked for, not of the files."""
    words = str(error)
    return any(sign in words for sign in ("structure", "not compatible", "mismatch"))


def sealed(meta: Mapping[str, Any]) -> dict[str, Any]:
    """JSON values with the format and a digest of all of them."""
    values = {**json.loads(json.dumps(meta)), "format": FORMAT}
    return {**values, "sha256": _digest(values)}


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()
