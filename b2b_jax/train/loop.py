"""The training loop: the one place where steps, clocks, files and signals meet (effects)."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from b2b_jax.data import Prepared, train_batches
from b2b_jax.growth import GrowthPlan
from b2b_jax.models import build_model
from b2b_jax.train.checkpoint import Checkpoints
from b2b_jax.train.config import RunConfig
from b2b_jax.train.continuing import continue_newest, naming_the_kept, open_writers
from b2b_jax.train.heldout import heldout_columns
from b2b_jax.train.inherit import Hints
from b2b_jax.train.meter import Accounting, Meter, Progress
from b2b_jax.train.processes import LostProcess, Vote, Votes, naming_lost_processes, wait_for_all
from b2b_jax.train.programs import Lessons, Programs
from b2b_jax.train.saved import SavedModel
from b2b_jax.train.schedule import Phase
from b2b_jax.train.signals import StopRequest
from b2b_jax.train.state import TrainState
from b2b_jax.train.teacher import Teacher
from b2b_jax.train.writers import Reporter, metric_columns


@dataclass(frozen=True)
class Outcome:
    """How a sitting ended.

    Attributes:
        exit_code: 0 finished, 75 stopped by SIGTERM, 130 by Ctrl-C.
        step: updates done.
        heldout_loss: of the newest evaluation.
        seconds: of training, over all sittings.
        data_wait: those of them that were spent waiting for data.
    """

    exit_code: int
    step: int
    heldout_loss: float | None
    seconds: float
    data_wait: float


class Trainer:
    """One run: builds its programs and state, continues where the last sitting stopped.

    Args:
        config: the run.
        prepared: its tokens.
        accounting: prices of its steps.
        reporter: where progress goes.
        initial: makes the first state, on its devices, if there is no checkpoint.
        teacher: the model to learn from, if the run has one.
        lineage: JSON values about where the parameters come from; kept in every checkpoint.
    """

    def __init__(
        self,
        config: RunConfig,
        prepared: Prepared,
        *,
        accounting: Accounting,
        reporter: Reporter,
        initial: Callable[[Programs], TrainState],
        lineage: Mapping[str, Any],
        teacher: SavedModel | None = None,
    ) -> None:
        self.config, self.prepared, self.reporter = config, prepared, reporter
        self.lineage = dict(lineage)
        self.schedule = config.schedule
        stored = self.lineage.get("growth_plan")
        plan = None if stored is None else GrowthPlan.from_json(json.dumps(stored))
        model = None if teacher is None else build_model(teacher.config, compute=config.compute)
        self.programs = Programs(config, prepared.tokenizer, plan=plan, teacher=model)
        self.teacher = (
            None
            if teacher is None
            else Teacher(teacher, config, programs=self.programs, prepared=prepared)
        )
        self._watched = plan.copied_axes if plan and config.log.symmetry == "on" else ()
        self.checkpoints = Checkpoints(config.run_dir, config.checkpoint)
        self.meter = Meter(config, self.schedule, accounting)
        self._initial: Callable[[Programs], TrainState] | None = initial
        self._last_save = self._clock = time.monotonic()

    def start(self) -> TrainState:
        """The state to go on from: the newest sound checkpoint, or step zero.

        Raises:
            DataError: if the run was trained on other tokens.
            DamagedCheckpoint: if there are checkpoints, but none is sound.
        """
        found = continue_newest(
            self.checkpoints,
            run_dir=self.config.run_dir,
            abstract=self.programs.abstract_state(),
            prepared=self.prepared,
            reporter=self.reporter,
        )
        if found is None:
            self.reporter.note("start: no checkpoint yet, from step 0")
            assert self._initial is not None
            state, self._initial = self._initial(self.programs), None  # it may hold a whole model
            return state
        self.meter.resume(Progress(**found.meta["progress"]))
        self.lineage = found.meta["lineage"]
        return found.state

    def run(self) -> Outcome:
        """Train to the end or until asked to stop; leaves a checkpoint in both cases.

        Raises:
            NonFiniteLoss: names the step; nothing is saved after the last good checkpoint.
            LostProcess: if another process of the job has ended.
        """
        config, meter = self.config, self.meter
        with contextlib.ExitStack() as stack:
            stack.callback(self.reporter.close)
            stack.push(self._close_checkpoints)
            stack.enter_context(naming_lost_processes())
            stop = stack.enter_context(StopRequest())
            # Until the first checkpoint is there, nothing of an earlier sitting counts.
            resumed = self.checkpoints.latest_step() is not None
            state = self.start()
            start = saved = meter.progress.step
            columns = metric_columns(self.schedule.drawn_depths, copied=self._watched)
            kept = start if resumed else -1
            writers = open_writers(config, columns, keep_through=kept)
            for writer in writers:
                stack.callback(writer.close)
            if not resumed:
                self._write_row(writers, heldout=self._evaluate(state, before_step=0))
                saved = -1
            if self.teacher is not None and self.schedule.phase(start).needs_teacher:
                self.teacher.prepare(
                    self._batches, first_step=start, reporter=self.reporter, stop=stop
                )
            batches = self._batches(start) if start < config.train.steps else iter(())
            self._clock = time.monotonic()
            votes, vote = Votes(self.programs.mesh), Vote(0, saves=False)
            for step in range(start, config.train.steps):
                vote = votes.cast(stop.exit_code, saves=self._is_time_to_save())
                if vote.saves and step != saved:
                    self._save(state)
                    saved = step
                    self._clock = time.monotonic()
                if vote.exit_code:
                    break
                before = time.monotonic()
                batch = next(batches)
                meter.waited(time.monotonic() - before)
                state = self._train_one(state, batch, step)
                done = step + 1
                evaluates = self._evaluates(done)
                if evaluates or done % config.log.every_steps == 0:
                    self._read()
                    self._tick()
                    heldout = self._evaluate(state, before_step=step) if evaluates else {}
                    self._write_row(writers, heldout=heldout)
                if self._saves(done):
                    self._save(state)
                    saved = done
                # Evaluating, writing and saving are no training time.
                self._clock = time.monotonic()
            if saved != meter.progress.step:
                self._save(state)
            self.checkpoints.wait()
        done = meter.progress
        code = 0 if done.step >= config.train.steps else vote.exit_code
        return Outcome(code, done.step, done.heldout_loss, done.seconds, done.data_wait)

    def _close_checkpoints(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        del kind, trace
        if not isinstance(error, LostProcess):  # Orbax would wait for the process that is gone
            self.checkpoints.close()

    def _batches(self, start: int) -> Iterator[Mapping[str, np.ndarray]]:
        train = self.config.train
        return train_batches(
            self.prepared,
            sequence_length=train.sequence_length,
            layout="gpt2" if self.config.model.is_causal else "bert",
            batch_size=train.batch_size,
            seed=train.seed,
            start_step=start,
            rows=self.programs.local_rows,
        )

    def _train_one(
        self, state: TrainState, batch: Mapping[str, np.ndarray], step: int
    ) -> TrainState:
        sub, phase = self.schedule.sub_model(step), self.schedule.phase(step)
        if step == phase.start and phase.layer_order:
            state = self.programs.begin_phase(state, phase)
        input_ids, hints = self.programs.put(batch["input_ids"]), None
        if not phase.needs_teacher:
            self.teacher = None  # it needs memory, and no later phase learns from it
        if self.teacher is not None:
            hints = self.teacher.hints(step)
        lessons: Lessons = "labels" if hints is None else "labels and teacher"
        if not self.programs.is_compiled(sub, lessons=lessons):
            self._compile(phase, state, input_ids, hints=hints)
        arguments = (state, input_ids) if hints is None else (state, input_ids, hints)
        state, metrics = self.programs.train_step(sub, lessons=lessons)(*arguments)
        with naming_the_kept(self.checkpoints):
            self.meter.step(sub, metrics)
        self._tick()
        self.reporter.update(
            step + 1,
            self.config.train.steps,
            text=self.meter.status(),
            seconds_left=self.meter.seconds_left(),
        )
        return state

    def _compile(
        self, phase: Phase, state: TrainState, input_ids: jax.Array, *, hints: Hints | None
    ) -> None:
        """Compile every step that a phase draws from, so that none of its steps has to wait."""
        self._tick()  # waiting for the first batch is training time, compiling is none
        progress, steps = self.meter.progress, self.config.train.steps
        for done, sub in enumerate(phase.subs):
            text = f"compiling {done + 1} of {len(phase.subs)}: bottom {sub.depth} layers"
            self.reporter.update(progress.step, steps, text=text, seconds_left=None)
            before = time.monotonic()
            self.programs.compile_train_step(sub, state, input_ids, hints=hints)
            self.reporter.note(
                f"compiled the step that runs {sub.depth} and trains {sub.live_layers} layers in "
                f"{time.monotonic() - before:.1f} s"
            )
        wait_for_all("the step is compiled")
        self._clock = time.monotonic()

    def _tick(self) -> None:
        """Count the time since the last tick as training time."""
        now = time.monotonic()
        self.meter.progress.seconds += now - self._clock
        self._clock = now

    def _read(self) -> None:
        """Wait for the device and read every loss."""
        with naming_the_kept(self.checkpoints):
            self.meter.read()

    def _evaluates(self, done: int) -> bool:
        train = self.config.train
        boundary = any(done == phase.stop for phase in self.schedule.phases)
        return done % train.eval_every == 0 or boundary

    def _evaluate(self, state: TrainState, *, before_step: int) -> dict[str, float]:
        columns = heldout_columns(
            self.programs, self.prepared, state.params, phase=self.schedule.phase(before_step)
        )
        self.meter.progress.heldout_loss = columns["heldout_loss"]
        if self._watched:
            columns |= self.programs.copy_distances(state.params)
        return columns

    def _write_row(self, writers: list[Any], *, heldout: Mapping[str, float]) -> None:
        row = {**self.meter.row(), **heldout}
        for writer in writers:
            writer.write(row)

    def _saves(self, done: int) -> bool:
        every = self.config.checkpoint.every_steps
        return bool(every and done % every == 0) or done == self.config.train.steps

    def _is_time_to_save(self) -> bool:
        every = self.config.checkpoint.every_minutes
        return bool(every and time.monotonic() - self._last_save >= 60 * every)

    def _save(self, state: TrainState) -> None:
        self._read()
        progress = self.meter.progress
        self.checkpoints.save(
            state,
            {
                "model": self.config.model.to_dict(),
                "config": self.config.to_dict(),
                "data": {
                    "path": str(self.prepared.path),
                    "fingerprint": self.prepared.fingerprint,
                    "sha256": dict(self.prepared.digests),
                    "next_step": progress.step,
                },
                "lineage": self.lineage,
                "progress": dataclasses.asdict(progress),
            },
            step=progress.step,
            heldout_loss=progress.heldout_loss,
        )
        self._last_save = time.monotonic()
