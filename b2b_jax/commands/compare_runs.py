"""One run of a comparison: trained to its end, found finished, or given up (effects)."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import jax

from b2b_jax.commands.compare_reporter import CompareReporter
from b2b_jax.commands.folders import write_json
from b2b_jax.commands.train import train_command
from b2b_jax.models import build_model
from b2b_jax.report.study import Status
from b2b_jax.train.checkpoint import finished_steps
from b2b_jax.train.config import RunConfig
from b2b_jax.train.disk import DiskFull, megabytes_free
from b2b_jax.train.meter import NonFiniteLoss
from b2b_jax.train.saved import read_meta
from b2b_jax.train.signals import StopRequest
from b2b_jax.train.stored import CheckpointError

DIVERGED_FILE = "diverged.json"


class Stopped(Exception):
    """A sitting was asked to stop; everything is saved.

    Attributes:
        exit_code: 75 (SIGTERM) or 130 (Ctrl-C).
    """

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


@dataclass(frozen=True)
class RunResult:
    """What became of a run.

    Attributes:
        status: "done" or "diverged".
        diverged_at: the step whose loss was no number.
        final_loss: held-out loss at its end.
    """

    status: Status
    diverged_at: int | None = None
    final_loss: float | None = None


class RunSitter:
    """Trains the runs of a comparison, one after the other.

    Args:
        root: folder of the comparison.
        reporter: where progress goes.
        stop: asked before every run.
    """

    def __init__(self, root: Path, *, reporter: CompareReporter, stop: StopRequest) -> None:
        self._root, self._reporter, self._stop = root, reporter, stop

    def stop_if_asked(self) -> None:
        """Raise `Stopped` if a signal has come."""
        if self._stop.exit_code:
            raise Stopped(self._stop.exit_code)

    def sit(self, run: RunConfig, *, name: str, flops: float) -> RunResult:
        """Train one run to its end, unless that was done or it diverged before.

        Args:
            run: its settings.
            name: for the progress line.
            flops: of the whole run, from which the time left is told.

        Raises:
            Stopped: if a signal asked for it; the run goes on in the next sitting.
            OSError: if the disk has no room for its checkpoints.
        """
        self.stop_if_asked()
        folder = Path(run.run_dir)
        self._reporter.begin(name, flops=flops, log=folder / "log.txt")
        try:
            result = self._found(folder) or self._trained(run)
        finally:
            self._reporter.end()
        if result.status == "diverged":
            self._reporter.note(
                f"{name}: diverged at step {result.diverged_at}; the others go on (delete {folder} "
                "to try again)"
            )
        return result

    def _found(self, folder: Path) -> RunResult | None:
        path = folder / DIVERGED_FILE
        if not path.exists():
            return None
        return RunResult("diverged", int(json.loads(path.read_text(encoding="utf-8"))["step"]))

    def _trained(self, run: RunConfig) -> RunResult:
        if not is_trained(run.run_dir, steps=run.train.steps):
            self._refuse_full_disk(run)
        try:
            outcome = train_command(run, reporter=self._reporter)
            loss = outcome.heldout_loss
            if outcome.exit_code == 0 and loss is not None and not math.isfinite(loss):
                raise NonFiniteLoss(f"held-out loss {loss}", step=outcome.step)
        except NonFiniteLoss as error:
            values = {"step": error.step, "message": str(error)}
            write_json(Path(run.run_dir) / DIVERGED_FILE, values)
            return RunResult("diverged", error.step)
        finally:
            jax.clear_caches()  # no other run uses its compiled programs
        if outcome.exit_code:
            raise Stopped(outcome.exit_code)
        return RunResult("done", None, loss)

    def _refuse_full_disk(self, run: RunConfig) -> None:
        """Say that the disk is full before the run has to."""
        parameters = sum(math.prod(shape) for shape in build_model(run.model).shapes.values())
        kept = run.checkpoint.keep_last + run.checkpoint.keep_best + 1
        more = max(kept - len(finished_steps(run.run_dir)), 1)
        needed = 3 * 4 * parameters * more / 1e6
        if megabytes_free(self._root) < needed:
            raise DiskFull(f"a run needs {needed:.0f} MB")


def is_trained(folder: str, *, steps: int = 0) -> bool:
    """Whether a folder holds a model, of a run that has reached some step if one is asked for."""
    try:
        meta = read_meta(folder)
    except CheckpointError:
        return False
    return meta.get("progress", {}).get("step", 0) >= steps
