"""The numbers of a run: losses, FLOPs, rates, and the rows of metrics.csv."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import jax.numpy as jnp

from b2b_jax.train.config import RunConfig
from b2b_jax.train.optim import learning_rate
from b2b_jax.train.schedule import Schedule
from b2b_jax.train.stages import SubModel
from b2b_jax.train.step import StepMetrics

SMOOTHING = 0.9
STARVED = 0.01
"""Share of the time spent waiting for data from which on a run says so."""


class NonFiniteLoss(RuntimeError):
    """A loss was infinite or not a number; the last good checkpoint is kept.

    Attributes:
        step: the update whose loss it was, counted from one.
    """

    def __init__(self, message: str, *, step: int) -> None:
        super().__init__(message)
        self.step = step


@runtime_checkable
class Cost(Protocol):
    """FLOPs of something, by both accountings."""

    @property
    def electra(self) -> float:
        """By the accounting that the paper most likely used."""
        ...

    @property
    def exact(self) -> float:
        """Matrix products that the compiled program does."""
        ...


@dataclass(frozen=True)
class Accounting:
    """How a run is priced; given by the caller, so that training needs no report code.

    Attributes:
        step_cost: FLOPs of one training step of a sub-model.
        teacher_cost: FLOPs of a teacher's predictions for one step, if there is one. They count in
            full also where a cache made them before, since they had to be made for it.
        peak_flops: FLOP/s of all devices together, if known.
    """

    step_cost: Callable[[SubModel], Cost]
    teacher_cost: Cost | None = None
    peak_flops: float | None = None


@dataclass
class Progress:
    """Numbers that a run carries besides its state; saved in every checkpoint.

    Attributes:
        step: updates done.
        flops: so far, by accounting.
        seconds: of training so far, over all sittings, without compiling and evaluating.
        data_wait: those of them in which the next batch was not there yet.
        window: depth -> [summed loss, steps] since the last row of metrics.csv.
        window_from: (seconds, exact FLOPs, steps, seconds of waiting) at that row.
        heldout_loss: of the newest evaluation of the whole model.
    """

    step: int = 0
    flops: dict[str, float] = field(default_factory=lambda: {"electra": 0.0, "exact": 0.0})
    seconds: float = 0.0
    data_wait: float = 0.0
    window: dict[str, list[float]] = field(default_factory=dict)
    window_from: list[float] = field(default_factory=lambda: [0.0, 0.0, 0, 0.0])
    heldout_loss: float | None = None


class Meter:
    """Follows a run step by step; the device may be one step ahead of what has been read."""

    def __init__(self, config: RunConfig, schedule: Schedule, accounting: Accounting) -> None:
        self.config, self.schedule, self.accounting = config, schedule, accounting
        self.progress = Progress()
        self._pending: list[tuple[SubModel, StepMetrics]] = []
        self._grad_norm = self._loss = math.nan
        self._began = (0.0, 0.0)

    def resume(self, progress: Progress) -> None:
        """Go on from the numbers of a checkpoint."""
        self.progress = progress
        self._began = (progress.seconds, progress.flops["exact"])

    def waited(self, seconds: float) -> None:
        """Count time in which the next batch was not there yet."""
        self.progress.data_wait += seconds

    def step(self, sub: SubModel, metrics: StepMetrics) -> None:
        """Count a step that has been sent to the device, and read the one before it.

        Raises:
            NonFiniteLoss: names the step.
        """
        progress = self.progress
        costs = [self.accounting.step_cost(sub)]
        if self.schedule.phase(progress.step).needs_teacher and self.accounting.teacher_cost:
            costs.append(self.accounting.teacher_cost)
        progress.step += 1
        progress.flops["electra"] += sum(cost.electra for cost in costs)
        progress.flops["exact"] += sum(cost.exact for cost in costs)
        self._pending.append((sub, metrics))
        self.read(leave=1)

    def read(self, *, leave: int = 0) -> None:
        """Read losses back from the device; the newest ``leave`` may still be running.

        Raises:
            NonFiniteLoss: names the step.
        """
        while len(self._pending) > leave:
            sub, metrics = self._pending.pop(0)
            loss = float(metrics.loss.total) / float(metrics.loss.count)
            self._grad_norm = float(metrics.grad_norm)
            if not (math.isfinite(loss) and math.isfinite(self._grad_norm)):
                step = self.progress.step - len(self._pending)
                raise NonFiniteLoss(
                    f"step {step}: loss {loss}, gradient norm {self._grad_norm}", step=step
                )
            window = self.progress.window.setdefault(str(sub.depth), [0.0, 0.0])
            window[0] += loss
            window[1] += 1.0
            first = math.isnan(self._loss)
            self._loss = loss if first else SMOOTHING * self._loss + (1 - SMOOTHING) * loss

    def row(self) -> dict[str, Any]:
        """What happened since the last row, as columns of metrics.csv; starts a new window."""
        progress, last = self.progress, max(self.progress.step - 1, 0)
        row: dict[str, Any] = {
            "step": progress.step,
            "stage": self.schedule.phase(last).name,
            "flops_electra": progress.flops["electra"],
            "flops_exact": progress.flops["exact"],
            "seconds": progress.seconds,
        }
        seconds, flops, since, *waited = progress.window_from
        steps = progress.step - since
        if steps:
            sums = progress.window
            rate = learning_rate(
                jnp.int32(last), self.config.optimizer, total_steps=self.config.train.steps
            )
            row |= {
                "depth": self.schedule.sub_model(last).depth,
                "loss": sum(s[0] for s in sums.values()) / sum(s[1] for s in sums.values()),
                "grad_norm": self._grad_norm,
                "learning_rate": float(rate),
            }
            if row["stage"] == "sub":
                row |= {f"loss_depth_{d}": s[0] / s[1] for d, s in sorted(sums.items())}
            spent = progress.seconds - seconds
            if spent > 0:
                train = self.config.train
                row["tokens_per_second"] = steps * train.batch_size * train.sequence_length / spent
                # Older checkpoints do not know how long it had waited.
                before = waited[0] if waited else progress.data_wait
                row["data_wait"] = (progress.data_wait - before) / spent
                if self.accounting.peak_flops:
                    done = progress.flops["exact"] - flops
                    row["mfu"] = done / spent / self.accounting.peak_flops
        progress.window = {}
        progress.window_from = [
            progress.seconds,
            progress.flops["exact"],
            progress.step,
            progress.data_wait,
        ]
        return row

    def seconds_left(self) -> float | None:
        """What remains, at the FLOPs per second of this sitting."""
        spent = self.progress.seconds - self._began[0]
        done = self.progress.flops["exact"] - self._began[1]
        if spent <= 0 or done <= 0:
            return None
        step, left = self.progress.step, 0.0
        for phase in self.schedule.phases:
            mean = sum(self.accounting.step_cost(sub).exact for sub in phase.subs) / len(phase.subs)
            if phase.needs_teacher and self.accounting.teacher_cost:
                mean += self.accounting.teacher_cost.exact
            left += mean * max(phase.stop - max(step, phase.start), 0)
        return left * spent / done

    def status(self) -> str:
        """Stage, smoothed training loss and newest held-out loss, for the progress line."""
        last = max(self.progress.step - 1, 0)
        depth = self.schedule.sub_model(last).depth
        whole = depth == self.schedule.num_layers and self.schedule.phase(last).name != "sub"
        parts = ["whole model" if whole else f"bottom {depth} layers"]
        if not math.isnan(self._loss):
            parts.append(f"loss {self._loss:.3f}")
        if self.progress.heldout_loss is not None:
            parts.append(f"held-out {self.progress.heldout_loss:.3f}")
        waited, seconds = self.progress.data_wait, self.progress.seconds
        if waited > STARVED * seconds > 0:
            parts.append(f"waiting for data {100 * waited / seconds:.0f} %")
        return "  ".join(parts)
