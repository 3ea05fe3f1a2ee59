"""How a sitting joins what earlier ones left: checkpoints and metrics (effects: files)."""

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax

from b2b_jax.data import DataError, Prepared
from b2b_jax.train.checkpoint import Checkpoints
from b2b_jax.train.config import RunConfig
from b2b_jax.train.meter import NonFiniteLoss
from b2b_jax.train.processes import LostProcess, is_first
from b2b_jax.train.state import TrainState
from b2b_jax.train.stored import DamagedCheckpoint
from b2b_jax.train.writers import CsvWriter, Reporter, TensorBoardWriter


@dataclass(frozen=True)
class Continued:
    """A checkpoint that was read.

    Attributes:
        state: as it was.
        meta: the JSON values that were saved with it.
    """

    state: TrainState
    meta: dict[str, Any]


def continue_newest(
    checkpoints: Checkpoints,
    *,
    run_dir: str,
    abstract: TrainState,
    prepared: Prepared,
    reporter: Reporter,
) -> Continued | None:
    """Read the newest checkpoint that is sound; damaged ones are named and set aside.

    Args:
        checkpoints: of the run.
        run_dir: its folder, for messages.
        abstract: shapes, dtypes and shardings of the state.
        prepared: the tokens that the run is to be trained on.
        reporter: where it is said what is used.

    Returns:
        None if there is no checkpoint.

    Raises:
        DataError: if the run was trained on other tokens.
        DamagedCheckpoint: if there are checkpoints, but none is sound.
        LostProcess: if one was set aside while other processes of the job may wait for this one.
    """
    problems = []
    for step in reversed(checkpoints.steps()):
        try:
            meta = checkpoints.meta(step)
            _refuse_other_data(run_dir, meta["data"], prepared)
            state = checkpoints.restore(step, abstract)
        except DamagedCheckpoint as error:
            aside = checkpoints.set_aside(step)
            if jax.process_count() > 1:
                raise LostProcess(
                    f"process {jax.process_index()}: {error}; set aside as {aside.name}. Start "
                    "all processes again to go on from the checkpoint before it"
                ) from error
            reporter.note(f"start: {error}; set aside as {aside.name}")
            problems.append(str(error))
            continue
        reporter.note(f"start: continues from the checkpoint of step {step}")
        return Continued(state, meta)
    if problems:
        raise DamagedCheckpoint(
            "No checkpoint of this run is sound:\n  "
            + "\n  ".join(problems)
            + "\nThey are kept beside it as damaged-*; repeat the command to begin at step 0"
        )
    return None


def _refuse_other_data(run_dir: str, before: dict[str, Any], prepared: Prepared) -> None:
    if before["fingerprint"] == prepared.fingerprint:
        return
    known = before.get("sha256", {})  # older checkpoints have the fingerprint only
    other = [name for name, now in prepared.digests.items() if known.get(name, now) != now]
    raise DataError(
        f"{run_dir}: this run was trained on data {before['fingerprint'][:12]} "
        f"({before['path']}), the prepared data is now {prepared.fingerprint[:12]} "
        f"({prepared.path}{': another ' if other else ''}{', '.join(other)}). Use the same text "
        "and tokenizer, or another run_dir"
    )


def open_writers(config: RunConfig, columns: Sequence[str], *, keep_through: int) -> list[Any]:
    """What a run writes its numbers to; nothing in processes that are not the first.

    Args:
        config: the run.
        columns: of metrics.csv.
        keep_through: the last step whose rows stay; -1 for none.
    """
    if not is_first():
        return []
    run_dir = Path(config.run_dir)
    writers: list[Any] = [CsvWriter(run_dir / "metrics.csv", columns, keep_through=keep_through)]
    if config.log.tensorboard == "on":
        writers.append(TensorBoardWriter(run_dir / "tensorboard", keep_through=keep_through))
    return writers


@contextlib.contextmanager
def naming_the_kept(checkpoints: Checkpoints) -> Iterator[None]:
    """Add to the message of a loss that is no number which checkpoint is kept.

    Raises:
        NonFiniteLoss: with what to do.
    """
    try:
        yield
    except NonFiniteLoss as error:
        kept = checkpoints.latest_step()
        what = (
            "there is no checkpoint yet"
            if kept is None
            else f"the checkpoint of step {kept} is kept"
        )
        raise NonFiniteLoss(
            f"{error}; {what}. Repeat the command if the machine may be to blame; else begin "
            "another run_dir with a lower optimizer.peak_learning_rate or more "
            "optimizer.warmup_steps",
            step=error.step,
        ) from None
