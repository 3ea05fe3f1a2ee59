"""The training loop: the one place where steps, clocks, files and signals meet (effects)."""

import contextlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import jax
import jax.numpy as jnp
import numpy as np

from b2b_jax.data import DataError, Prepared, heldout_batches, train_batches
from b2b_jax.train.checkpoint import Checkpoints
from b2b_jax.train.config import RunConfig
from b2b_jax.train.optim import learning_rate
from b2b_jax.train.programs import Programs
from b2b_jax.train.signals import StopRequest
from b2b_jax.train.stages import SubModel, draw, full_model, sub_models
from b2b_jax.train.state import TrainState
from b2b_jax.train.step import StepMetrics
from b2b_jax.train.writers import CsvWriter, Reporter, TensorBoardWriter, metric_columns
from b2b_jax.types import Params

class NonFiniteLoss(RuntimeError):
    """A loss was infinite or not a number; the last good checkpoint is kept."""


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
        peak_flops: FLOP/s of all devices together, if known.
    """

    step_cost: Callable[[SubModel], Cost]
    peak_flops: float | None = None


@dataclass
class Progress:
    """Numbers that a run carries besides its state; saved in every checkpoint.

    Attributes:
        step: updates done.
        flops: so far, by accounting.
        seconds: of training so far, over all sittings.
        window: depth -> [summed loss, steps] since the last row of metrics.csv.
        heldout_loss: of the newest evaluation of the whole model.
    """

    step: int = 0
    flops: dict[str, float] = field(default_factory=lambda: {"electra": 0.0, "exact": 0.0})
    seconds: float = 0.0
    window: dict[str, list[float]] = field(default_factory=dict)
    heldout_loss: float | None = None


@dataclass(frozen=True)
class Outcome:
    """How a sitting ended.

    Attributes:
        exit_code: 0 finished, 75 stopped by SIGTERM, 130 by Ctrl-C.
        step: updates done.
        heldout_loss: of the newest evaluation.
        seconds: of training, over all sittings.
    """

    exit_code: int
    step: int
    heldout_loss: float | None
    seconds: float


class Trainer:
    """One run: builds its programs and state, continues where the last sitting stopped.

    Args:
        config: the run.
        prepared: its tokens.
        accounting: prices of its steps.
        reporter: where progress goes.
        initial: makes the first parameters, on their devices, if there is no checkpoint.
        lineage: JSON values about where the parameters come from; kept in every checkpoint.
    """

    def __init__(
        self,
        config: RunConfig,
        prepared: Prepared,
        *,
        accounting: Accounting,
        reporter: Reporter,
        initial: Callable[[Programs], Params],
        lineage: Mapping[str, Any],
    ) -> None:
        self.config, self.prepared = config, prepared
        self.accounting, self.reporter = accounting, reporter
        self.lineage = dict(lineage)
        layers = config.model.num_hidden_layers
        self.full = full_model(layers)
        self.subs = sub_models(layers, config.two_stage) if config.two_stage.steps else ()
        self.programs = Programs(config, prepared.tokenizer)
        self.checkpoints = Checkpoints(config.run_dir, config.checkpoint)
        self.progress = Progress()
        self._initial = initial
        self._pending: list[tuple[SubModel, StepMetrics]] = []
        self._last_row = (0.0, 0)
        self._last_grad_norm = math.nan
        self._last_save = time.monotonic()

    def sub_model(self, step: int) -> SubModel:
        """What a step trains: a drawn sub-model in stage one, the whole model in stage two."""
        if step < self.config.two_stage.steps:
            return self.subs[draw(self.config.train.seed, step, len(self.subs))]
        return self.full

    def start(self) -> TrainState:
        """The state to go on from: the newest checkpoint, or step zero."""
        step = self.checkpoints.latest_step()
        if step is None:
            self.reporter.note("start: no checkpoint yet, from step 0")
            return self.programs.create_state(self._initial(self.programs))
        meta = self.checkpoints.meta(step)
        found, expected = meta["data"]["fingerprint"], self.prepared.fingerprint
        if found != expected:
            raise DataError(
                f"{self.config.run_dir}: this run was trained on data {found[:12]}, the prepared "
                f"data is now {expected[:12]} ({self.prepared.path}). Use the same text and "
                "tokenizer, or another run_dir"
            )
        state = self.checkpoints.restore(step, self.programs.abstract_state())
        self.progress = Progress(**meta["progress"])
        self.lineage = meta["lineage"]
        self.reporter.note(f"start: continues from the checkpoint of step {step}")
        return state

    def run(self) -> Outcome:
        """Train to the end or until asked to stop; leaves a checkpoint in both cases.

        Raises:
            NonFiniteLoss: names the step; nothing is saved after the last good one.
        """
        config, total = self.config, self.config.train.steps
        state = self.start()
        start = self.progress.step
        self._last_row = (self.progress.seconds, start)
        run_dir = Path(config.run_dir)
        columns = metric_columns([sub.depth for sub in self.subs])
        # Before the first checkpoint nothing of an earlier sitting counts.
        resumed = self.checkpoints.latest_step() is not None
        keep = start if resumed else -1
        with contextlib.ExitStack() as stack:
            stack.callback(self.reporter.close)
            stack.callback(self.checkpoints.close)
            stop = stack.enter_context(StopRequest())
            writers: list[Any] = [
                CsvWriter(run_dir / "metrics.csv", columns, keep_through=keep)
            ]
            if config.log.tensorboard == "on":
                writers.append(TensorBoardWriter(run_dir / "tensorboard", start_step=start))
            for writer in writers:
                stack.callback(writer.close)
            if not resumed:
                self._row(writers, state, evaluate=True)
            batches = self._batches(start) if start < total else iter(())
            clock = time.monotonic()
            saved = start if resumed else -1
            for step in range(start, total):
                if stop.exit_code:
                    break
                state, clock = self._train_one(state, next(batches), step, clock)
                evaluate = self._evaluates(step + 1)
                if evaluate or (step + 1) % config.log.every_steps == 0:
                    self._harvest()
                    self._row(writers, state, evaluate=evaluate)
                    clock = time.monotonic()
                if self._saves(step + 1):
                    self._save(state)
                    saved = step + 1
            if saved != self.progress.step:
                self._harvest()
                self._save(state)
            self.checkpoints.wait()
        progress = self.progress
        code = 0 if progress.step >= total else stop.exit_code
        return Outcome(code, progress.step, progress.heldout_loss, progress.seconds)

    def _train_one(
        self, state: TrainState, batch: Mapping[str, np.ndarray], step: int, clock: float
    ) -> tuple[TrainState, float]:
        sub, progress = self.sub_model(step), self.progress
        tokens = self.programs.put(batch["input_ids"])
        if not self.programs.is_compiled(sub):
            before = time.monotonic()
            self.programs.compile_train_step(sub, state, tokens)
            after = time.monotonic()
            self.reporter.note(
                f"compiled the step that runs {sub.depth} and trains {sub.live_layers} layers in "
                f"{after - before:.1f} s"
            )
            clock += after - before
        state, metrics = self.programs.train_step(sub)(state, tokens)
        self._pending.append((sub, metrics))
        # The device works on this step while the host reads the one before.
        self._harvest(keep=1)
        cost = self.accounting.step_cost(sub)
        progress.step = step + 1
        progress.flops["electra"] += cost.electra
        progress.flops["exact"] += cost.exact
        now = time.monotonic()
        progress.seconds += now - clock
        done, total = step + 1, self.config.train.steps
        spent = progress.seconds - self._last_row[0]
        steps = done - self._last_row[1]
        left = (total - done) * spent / steps if steps else None
        stage = f"sub-model {sub.depth}" if step < self.config.two_stage.steps else "full"
        self.reporter.update(done, total, text=self._status(stage), seconds_left=left)
        return state, now

    def _status(self, stage: str) -> str:
        totals = self.progress.window.values()
        steps = sum(entry[1] for entry in totals)
        loss = f"loss {sum(entry[0] for entry in totals) / steps:.3f}  " if steps else ""
        heldout = self.progress.heldout_loss
        seen = "" if heldout is None else f"held-out {heldout:.3f}  "
        return f"{stage}  {loss}{seen}".rstrip()

    def _batches(self, start: int) -> Iterator[Mapping[str, np.ndarray]]:
        train = self.config.train
        return train_batches(
            self.prepared,
            sequence_length=train.sequence_length,
            layout=self.config.model.family,
            batch_size=train.batch_size,
            seed=train.seed,
            start_step=start,
            process_index=jax.process_index(),
            process_count=jax.process_count(),
        )

    def _harvest(self, *, keep: int = 0) -> None:
        """Read losses of dispatched steps back; the newest ``keep`` may still be running."""
        while len(self._pending) > keep:
            sub, metrics = self._pending.pop(0)
            loss = float(metrics.loss.total) / float(metrics.loss.count)
            self._last_grad_norm = float(metrics.grad_norm)
            if not (math.isfinite(loss) and math.isfinite(self._last_grad_norm)):
                step = self.progress.step - len(self._pending)
                kept = self.checkpoints.latest_step()
                raise NonFiniteLoss(
                    f"step {step}: loss {loss}, gradient norm {self._last_grad_norm}. "
                    + ("There is no checkpoint yet. " if kept is None
                       else f"The checkpoint of step {kept} is kept. ")
                    + "Lower optimizer.peak_learning_rate or raise optimizer.warmup_steps"
                )
            window = self.progress.window.setdefault(str(sub.depth), [0.0, 0.0])
            window[0] += loss
            window[1] += 1.0

    def _evaluates(self, done: int) -> bool:
        boundary = done == self.config.two_stage.steps
        every = done % self.config.train.eval_every == 0
        return every or boundary or done == self.config.train.steps

    def _saves(self, done: int) -> bool:
        checkpoint = self.config.checkpoint
        minutes = (time.monotonic() - self._last_save) / 60
        return (
            bool(checkpoint.every_steps and done % checkpoint.every_steps == 0)
            or bool(checkpoint.every_minutes and minutes >= checkpoint.every_minutes)
            or done == self.config.train.steps
        )

    def _save(self, state: TrainState) -> None:
        self._harvest()
        progress = self.progress
        self.checkpoints.save(
            state,
            {
                "library_version": self.lineage.get("library_version", "unknown"),
                "model": self.config.model.to_dict(),
                "config": self.config.to_dict(),
                "data": {
                    "path": str(self.prepared.path),
                    "fingerprint": self.prepared.fingerprint,
                    "next_step": progress.step,
                },
                "lineage": self.lineage,
                "progress": json.loads(json.dumps(progress.__dict__)),
            },
            step=progress.step,
            heldout_loss=progress.heldout_loss,
        )
        self._last_save = time.monotonic()

    def _row(self, writers: list[Any], state: TrainState, *, evaluate: bool) -> None:
        config, progress = self.config, self.progress
        in_stage_one = progress.step < config.two_stage.steps
        row: dict[str, Any] = {
            "step": progress.step,
            "stage": "sub" if progress.step and progress.step <= config.two_stage.steps
            else "sub" if in_stage_one else "full",
            "flops_electra": progress.flops["electra"],
            "flops_exact": progress.flops["exact"],
            "seconds": progress.seconds,
        }
        seconds, steps = progress.seconds - self._last_row[0], progress.step - self._last_row[1]
        if steps:
            totals = progress.window
            row |= {
                "depth": self.sub_model(progress.step - 1).depth,
                "loss": sum(t[0] for t in totals.values()) / sum(t[1] for t in totals.values()),
                "grad_norm": self._last_grad_norm,
                "learning_rate": float(
                    learning_rate(
                        jnp.int32(progress.step - 1),
                        config.optimizer,
                        total_steps=config.train.steps,
                    )
                ),
            }
            if row["stage"] == "sub":
                row |= {f"loss_depth_{d}": t[0] / t[1] for d, t in sorted(totals.items())}
            if seconds > 0:
                tokens = config.train.batch_size * config.train.sequence_length
                row["tokens_per_second"] = steps * tokens / seconds
                peak = self.accounting.peak_flops
                if peak:
                    exact = sum(
                        self.accounting.step_cost(self.sub_model(s)).exact
                        for s in range(self._last_row[1], progress.step)
                    )
                    row["mfu"] = exact / seconds / peak
            progress.window = {}
        if evaluate:
            row |= self._evaluate(state, in_stage_one)
        for writer in writers:
            writer.write(row)
        self._last_row = (progress.seconds, progress.step)

    def _evaluate(self, state: TrainState, in_stage_one: bool) -> dict[str, float]:
        train = self.config.train
        boundary = self.subs and self.progress.step <= self.config.two_stage.steps
        depths = (
            tuple(sub.depth for sub in self.subs)
            if in_stage_one or boundary
            else (self.full.depth,)
        )
        evaluate = self.programs.eval_step(depths)
        total, count = np.zeros(len(depths)), 0.0
        for index, batch in enumerate(
            heldout_batches(
                self.prepared,
                sequence_length=train.sequence_length,
                layout=self.config.model.family,
                batch_size=train.batch_size,
                max_batches=train.eval_batches,
            )
        ):
            loss = evaluate(state.params, self.programs.put(batch["input_ids"]), jnp.int32(index))
            total += np.asarray(loss.total, np.float64)
            count += float(loss.count[0])
        means = total / count
        self.progress.heldout_loss = float(means[-1])
        row = {"heldout_loss": float(means[-1])}
        if len(depths) > 1:
            row["heldout_submodel_mean"] = float(means.mean())
            row |= {f"heldout_depth_{d}": float(m) for d, m in zip(depths, means, strict=True)}
        return row
