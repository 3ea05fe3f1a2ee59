"""`b2b compare`: train every method of a comparison, or go on where it stopped (effects)."""

import functools
import json
import math
import os
import platform
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax

from b2b_jax.commands.compare_reporter import CompareReporter
from b2b_jax.commands.first_losses import write_first_losses
from b2b_jax.commands.folders import write_json
from b2b_jax.commands.grow import grow_command
from b2b_jax.commands.prepare import prepare_command
from b2b_jax.commands.request import GrowRequest
from b2b_jax.commands.starts import write_random_start, write_target
from b2b_jax.commands.train import planned_cost, train_command
from b2b_jax.compare import CompareConfig, Entry, Journal, Plan, SourceSpec
from b2b_jax.compare.identity import code_version
from b2b_jax.compare.journal import EntryRecord, RunRecord, SourceRecord, StartRecord
from b2b_jax.models import ConfigError, build_model
from b2b_jax.train.checkpoint import CheckpointError
from b2b_jax.train.config import RunConfig
from b2b_jax.train.loop import Outcome
from b2b_jax.train.meter import NonFiniteLoss
from b2b_jax.train.saved import load_model, read_meta, total_cost
from b2b_jax.train.signals import StopRequest
from b2b_jax.train.writers import Reporter

DISK_FULL = "No space left on device"


class _Stopped(Exception):
    """A run was asked to stop; everything is saved."""

    def __init__(self, exit_code: int) -> None:
        super().__init__(exit_code)
        self.exit_code = exit_code


def compare_command(config: CompareConfig, *, command: str, reporter: Reporter) -> int:
    """Train every method with every seed; finished runs are reused.

    Args:
        config: the comparison.
        command: the words that started it, for the record.
        reporter: where progress goes.

    Returns:
        0 done, 75 stopped by SIGTERM, 130 by Ctrl-C; the same command goes on in both cases.

    Raises:
        ConfigError: if a source is missing and is not to be trained, or the disk is full.
    """
    root = Path(config.run_dir)
    root.mkdir(parents=True, exist_ok=True)
    # Runs differ by little, and each evaluates by a program that all of them share.
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(root.absolute() / "compiled"))
    try:
        with StopRequest() as stop:
            _Comparison(config, command=command, reporter=reporter, stop=stop).run()
    except _Stopped as stopped:
        reporter.note("stopped, with everything saved; repeat the command to continue")
        return stopped.exit_code
    except Exception as error:
        if DISK_FULL not in _all_words(error):
            raise
        raise ConfigError(
            f"{root}: the disk is full ({shutil.disk_usage(root).free / 1e6:.0f} MB free). "
            "Finished runs are kept; free some space and repeat the command"
        ) from error
    return 0


def _all_words(error: BaseException | None) -> str:
    """The messages of an error and of everything that led to it."""
    words = ""
    while error is not None:
        words, error = f"{words} {error}", error.__cause__ or error.__context__
    return words


class _Comparison:
    """The state of one sitting."""

    def __init__(
        self, config: CompareConfig, *, command: str, reporter: Reporter, stop: StopRequest
    ) -> None:
        self.config, self.stop = config, stop
        self.reporter = CompareReporter(reporter)
        self.plan = Plan(
            config,
            fingerprint=functools.cache(lambda folder: load_model(folder).fingerprint),
            tokens=functools.cache(
                lambda data: prepare_command(data, reporter=reporter).fingerprint
            ),
        )
        self.journal = Journal(
            title=config.title,
            command=command,
            code=code_version(),
            machine=f"{jax.device_count()} x {jax.devices()[0].device_kind}, "
            f"{os.cpu_count()} cores, {platform.machine()}, jax {jax.__version__}",
            seeds=list(config.seeds),
            entries=[
                EntryRecord(
                    entry.name,
                    entry.method.label,
                    config.target.num_hidden_layers,
                    entry.source,
                    entry.rate_of,
                    [] if entry.rate_of else list(entry.rates),
                )
                for entry in config.entries
            ],
            tables={
                stem: {"title": table.title, "methods": list(table.methods)}
                for stem, table in config.tables.items()
            },
        )

    def run(self) -> None:
        """Everything that is missing, seed by seed, so that a whole table is there early."""
        self._refuse_missing_sources()
        write_target(self.plan.root, self.config.target)
        self.reporter.expect(self._remaining_flops())
        for seed in self.config.seeds:
            for spec in self.config.sources:
                self._source(spec, seed)
            for entry in self.plan.in_order:
                for rate in self._rates(entry, seed):
                    self._train(entry, seed=seed, rate=rate)
                self._choose_rate(entry)
        self._stop_if_asked()
        if self.config.first_losses:
            write_first_losses(self.plan, reporter=self.reporter)
        self._save()

    def _save(self) -> None:
        write_json(self.plan.root / "comparison.json", self.journal.to_dict())

    def _refuse_missing_sources(self) -> None:
        missing = []
        for spec in self.config.sources:
            for seed in self.config.seeds:
                folder = self.plan.source_folder(spec, seed)
                trains = not spec.folder and self.config.train_missing == "on"
                if not trains and not _is_trained(folder):
                    missing.append(f"{spec.name}: {folder}")
        if missing:
            raise ConfigError(
                "These sources are not trained; train them, name other folders, or set "
                "train_missing to on:\n  " + "\n  ".join(dict.fromkeys(missing))
            )

    def _source(self, spec: SourceSpec, seed: int) -> None:
        folder = self.plan.source_folder(spec, seed)
        if not spec.folder:
            run = self.plan.source_run(spec, seed)
            name = f"source {spec.name}, seed {self.plan.source_seed(seed)}"
            record = self._sit(run, name, rate=run.optimizer.peak_learning_rate)
            if record.status == "diverged":
                raise ConfigError(
                    f"{folder}: the source diverged at step {record.diverged_at}; lower "
                    f"sources.{spec.name}.optimizer.peak_learning_rate"
                )
        cost = total_cost(read_meta(folder))
        known = dict(cost["flops"] or {})
        if cost["seconds"] is not None:
            known["seconds"] = cost["seconds"]
        here = not spec.folder
        path = os.path.relpath(folder, self.plan.root) if here else folder
        self.journal.sources.append(SourceRecord(spec.name, seed, path, known, here))
        self._save()

    def _rates(self, entry: Entry, seed: int) -> tuple[float, ...]:
        if entry.rate_of:
            rate = self.journal.entry(entry.rate_of).rate
            return () if rate is None else (rate,)
        if seed == self.config.seeds[0]:
            return entry.rates
        rate = self.journal.entry(entry.name).rate
        return () if rate is None else (rate,)

    def _choose_rate(self, entry: Entry) -> None:
        """The rate of the lowest final loss with the first seed; none if all runs diverged."""
        record = self.journal.entry(entry.name)
        if record.rate is not None:
            return
        finished = [run for run in record.runs if run.final_loss is not None]
        if finished:
            best = min(finished, key=lambda run: run.final_loss or math.inf)
            record.rate = best.rate
            if len(entry.rates) > 1 and not entry.rate_of:
                self.reporter.note(f"{entry.name}: peak learning rate {best.rate:g} was best")
        self._save()

    def _train(self, entry: Entry, *, seed: int, rate: float) -> None:
        run = self.plan.run(entry, seed=seed, rate=rate)
        self._start(entry, seed)
        record = self._sit(run, f"{entry.name}, seed {seed}, rate {rate:g}", rate=rate)
        record.path = os.path.relpath(run.run_dir, self.plan.root)
        self.journal.entry(entry.name).record(record)
        self._save()

    def _start(self, entry: Entry, seed: int) -> None:
        """The target's first parameters: the same random ones for all that begin so."""
        folder = self.plan.start_folder(entry, seed)
        if entry.method.growth == "random":
            write_random_start(folder, self.config.target, seed=seed)
            return
        source = self.plan.source_folder(self.config.source(entry.source), seed)
        if not _is_trained(folder):
            request = GrowRequest(
                source,
                folder,
                to=str(self.plan.root / "target.yaml"),
                method=entry.method.growth,
                mapping=entry.method.mapping,
                depth=entry.method.depth,
                seed=seed,
            )
            grow_command(request, reporter=self.reporter.quiet(Path(f"{folder}.log")))
        paths = (os.path.relpath(path, self.plan.root) for path in (source, folder))
        start = StartRecord(entry.method.growth, seed, *paths)
        if start not in self.journal.starts:
            self.journal.starts.append(start)

    def _sit(self, run: RunConfig, name: str, *, rate: float) -> RunRecord:
        """Train one run to its end, unless that was done or it diverged before."""
        folder = Path(run.run_dir)
        diverged = folder / "diverged.json"
        record, outcome = RunRecord(run.train.seed, rate, "", "done"), Outcome(0, 0, None, 0.0)
        if diverged.exists():
            record.status, record.diverged_at = "diverged", _read_step(diverged)
            return record
        self._stop_if_asked()
        self.reporter.begin(name, flops=planned_cost(run).exact, log=folder / "log.txt")
        self._refuse_full_disk(run)
        try:
            outcome = _in_few_caches(lambda: train_command(run, reporter=self.reporter))
        except NonFiniteLoss as error:
            write_json(diverged, {"step": error.step, "message": str(error)})
            record.status, record.diverged_at = "diverged", error.step
        finally:
            self.reporter.end()
        if record.status == "diverged":
            self.reporter.note(f"{name}: diverged at step {record.diverged_at}; the others go on")
            return record
        if outcome.exit_code:
            raise _Stopped(outcome.exit_code)
        record.final_loss = outcome.heldout_loss
        return record

    def _stop_if_asked(self) -> None:
        if self.stop.exit_code:
            raise _Stopped(self.stop.exit_code)

    def _refuse_full_disk(self, run: RunConfig) -> None:
        """Say that the disk is full before a run has to."""
        parameters = sum(math.prod(shape) for shape in build_model(run.model).shapes.values())
        kept = run.checkpoint.keep_last + run.checkpoint.keep_best + 1
        needed = 3 * 4 * parameters * kept
        free = shutil.disk_usage(self.plan.root).free
        if free < needed:
            raise OSError(f"{DISK_FULL}: a run needs {needed / 1e6:.0f} MB")

    def _remaining_flops(self) -> float:
        """Of all runs to come; for a rate that is not chosen yet any will do."""
        total = 0.0
        for seed in self.config.seeds:
            first = seed == self.config.seeds[0]
            runs = [
                self.plan.source_run(spec, seed) for spec in self.config.sources if not spec.folder
            ]
            for entry in self.config.entries:
                rates = entry.rates if first and not entry.rate_of else entry.rates[:1]
                runs += [self.plan.run(entry, seed=seed, rate=rate) for rate in rates]
            total += sum(planned_cost(run).exact for run in runs)
        return total


def _in_few_caches(train: Callable[[], Outcome]) -> Outcome:
    """Train, and let go of the compiled programs, which no other run uses."""
    try:
        return train()
    finally:
        jax.clear_caches()


def _is_trained(folder: str) -> bool:
    try:
        read_meta(folder)
    except CheckpointError:
        return False
    return True


def _read_step(path: Path) -> int:
    values: Any = json.loads(path.read_text(encoding="utf-8"))
    return int(values["step"])
