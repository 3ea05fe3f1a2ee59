"""`b2b compare`: train every method of a comparison, or go on where it stopped (effects)."""

import functools
import math
import os
from pathlib import Path

import jax

from b2b_jax.commands.compare_facts import machine, model_fingerprint
from b2b_jax.commands.compare_reporter import CompareReporter
from b2b_jax.commands.compare_runs import RunSitter, Stopped, is_trained
from b2b_jax.commands.first_losses import remove_first_losses, write_first_losses
from b2b_jax.commands.folders import write_json
from b2b_jax.commands.prepare import prepare_command
from b2b_jax.commands.starts import write_start
from b2b_jax.commands.train import planned_cost
from b2b_jax.compare import CompareConfig, Entry, Journal, Plan, SourceSpec
from b2b_jax.compare.identity import code_version
from b2b_jax.compare.journal import FILE, EntryRecord, RunRecord, SourceRecord, StartRecord
from b2b_jax.models import ConfigError
from b2b_jax.report import ReportError
from b2b_jax.train.disk import is_full_disk, megabytes_free
from b2b_jax.train.saved import read_meta, total_cost
from b2b_jax.train.signals import StopRequest
from b2b_jax.train.writers import Reporter


def compare_command(config: CompareConfig, *, command: str, reporter: Reporter) -> int:
    """Train every method with every seed; finished runs are reused.

    Args:
        config: the comparison.
        command: the words that started it, for the record.
        reporter: where progress goes.

    Returns:
        0 done, 75 stopped by SIGTERM, 130 by Ctrl-C; the same command goes on in both cases.

    Raises:
        ConfigError: if a source is missing and is not to be trained, the disk is full, or there is
            more than one process.
    """
    if jax.process_count() > 1:
        raise ConfigError(
            f"b2b compare: found {jax.process_count()} processes, expected one; train the runs one "
            "by one with b2b train"
        )
    root = Path(config.run_dir)
    root.mkdir(parents=True, exist_ok=True)
    # Runs differ by little, and each evaluates by a program that all of them share.
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        jax.config.update("jax_compilation_cache_dir", str(root.absolute() / "compiled"))
    try:
        with StopRequest() as stop:
            _Comparison(config, command=command, reporter=reporter, stop=stop).run()
    except Stopped as stopped:
        reporter.note("stopped, with everything saved; repeat the command to continue")
        return stopped.exit_code
    except Exception as error:
        if not is_full_disk(error):
            raise
        raise ConfigError(
            f"{root}: the disk is full ({megabytes_free(root):.0f} MB free): {error}. "
            "Finished runs are kept; free some space and repeat the command"
        ) from error
    return 0


class _Comparison:
    """The state of one sitting."""

    def __init__(
        self, config: CompareConfig, *, command: str, reporter: Reporter, stop: StopRequest
    ) -> None:
        self.config = config
        self.reporter = CompareReporter(reporter)
        self.plan = Plan(
            config,
            fingerprint=functools.cache(model_fingerprint),
            tokens=functools.cache(
                lambda data: prepare_command(data, reporter=reporter).fingerprint
            ),
        )
        self.sitter = RunSitter(self.plan.root, reporter=self.reporter, stop=stop)
        self.failed: set[tuple[str, int]] = set()  # sources that diverged
        self.journal = Journal(
            title=config.title,
            command=command,
            code=code_version(),
            machine=machine(),
            seeds=list(config.seeds),
            entries=[
                EntryRecord(
                    entry.name,
                    entry.kind,
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
        self._adopt_earlier_sittings()
        self.reporter.expect(self._remaining_flops())
        for seed in self.config.seeds:
            for spec in self._used_sources():
                self._source(spec, seed)
            for entry in self.plan.in_order:
                if self._is_possible(entry, seed):
                    for rate in self._rates(entry, seed):
                        self._train(entry, seed=seed, rate=rate)
                    self._choose_rate(entry)
        self.sitter.stop_if_asked()
        remove_first_losses(self.plan.root)
        if self.config.first_losses and not self.failed:
            write_first_losses(self.plan, reporter=self.reporter)
        self._save()
        self.reporter.note(f"done; tables and pictures: b2b plot {self.plan.root}")

    def _save(self) -> None:
        write_json(self.plan.root / FILE, self.journal.to_dict())

    def _adopt_earlier_sittings(self) -> None:
        """Keep what is known of runs that this comparison has too, until they are looked at."""
        try:
            before = Journal.read(self.plan.root)
        except ReportError:
            return
        planned = {
            self._relative(self.plan.run(entry, seed=seed, rate=rate).run_dir)
            for entry in self.config.entries
            for seed in self.config.seeds
            for rate in self.config.entry(entry.rate_of or entry.name).rates
        }
        for entry in before.entries:
            for now in self.journal.entries:
                if now.name == entry.name:
                    now.runs = [run for run in entry.runs if run.path in planned]
                    rates = now.rates or self.journal.entry(now.rate_of).rates
                    now.rate = entry.rate if entry.rate in rates and now.runs else None
        folders = {
            self._relative(self.plan.source_folder(spec, seed))
            for spec in self.config.sources
            for seed in self.config.seeds
        }
        self.journal.sources = [source for source in before.sources if source.path in folders]
        self.journal.starts = [start for start in before.starts if start.source in folders]
        self._save()

    def _relative(self, folder: str) -> str:
        """A folder of the comparison as its journal has it; any other as it is."""
        inside = Path(folder).is_relative_to(self.plan.root)
        return os.path.relpath(folder, self.plan.root) if inside else folder

    def _used_sources(self) -> tuple[SourceSpec, ...]:
        used = {entry.source for entry in self.config.entries}
        everything = bool(self.config.first_losses)
        return tuple(spec for spec in self.config.sources if everything or spec.name in used)

    def _refuse_missing_sources(self) -> None:
        missing = []
        for spec in self._used_sources():
            for seed in self.config.seeds:
                folder = self.plan.source_folder(spec, seed)
                trains = not spec.folder and self.config.train_missing == "on"
                steps = 0 if spec.folder else spec.run.train.steps
                if not trains and not is_trained(folder, steps=steps):
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
            if self.sitter.sit(run, name=name, flops=planned_cost(run).exact).status == "diverged":
                self.failed.add((spec.name, seed))
                return
        cost = total_cost(read_meta(folder))
        known = dict(cost["flops"] or {})
        if cost["seconds"] is not None:
            known["seconds"] = cost["seconds"]
        path = self._relative(folder)
        record = SourceRecord(spec.name, seed, path, known, trained_here=not spec.folder)
        others = [old for old in self.journal.sources if (old.name, old.seed) != (spec.name, seed)]
        self.journal.sources = [*others, record]
        self._save()

    def _is_possible(self, entry: Entry, seed: int) -> bool:
        """Whether an entry has its source and its rate; otherwise it is said why not."""
        record, why = self.journal.entry(entry.name), ""
        if (entry.source, seed) in self.failed:
            why = f"its source {entry.source}, seed {seed}, diverged"
        elif not self._rates(entry, seed):
            why = f"{entry.rate_of or entry.name} diverged at every learning rate"
        if why and why not in record.notes:
            record.notes.append(why)
            self.reporter.note(f"{entry.name}: left out, since {why}")
            self._save()
        return not why

    def _rates(self, entry: Entry, seed: int) -> tuple[float, ...]:
        chosen = self.journal.entry(entry.rate_of or entry.name).rate
        if not entry.rate_of and (len(entry.rates) == 1 or seed == self.config.seeds[0]):
            return entry.rates
        return () if chosen is None else (chosen,)

    def _choose_rate(self, entry: Entry) -> None:
        """The rate of the lowest final loss with the first seed; none if all runs diverged."""
        record, before = self.journal.entry(entry.name), self.journal.entry(entry.name).rate
        if entry.rate_of:
            record.rate = self.journal.entry(entry.rate_of).rate
            return
        losses = {
            run.rate: run.final_loss
            for run in record.runs
            if run.seed == self.config.seeds[0]
            and run.final_loss is not None
            and math.isfinite(run.final_loss)
        }
        record.rate = min(losses, key=losses.__getitem__) if losses else None
        if len(entry.rates) == 1:
            record.rate = entry.rates[0]
        elif record.rate is not None and before is None:
            self.reporter.note(f"{entry.name}: peak learning rate {record.rate:g} was best")
        self._save()

    def _train(self, entry: Entry, *, seed: int, rate: float) -> None:
        run = self.plan.run(entry, seed=seed, rate=rate)
        spec = self.config.source(entry.source) if entry.source else None
        source = "" if spec is None else self.plan.source_folder(spec, seed)
        grown = write_start(
            self.plan.start_folder(entry, seed),
            target=self.config.target,
            method=entry.method,
            source=source,
            seed=seed,
            reporter=self.reporter,
        )
        start = StartRecord(
            entry.method.growth,
            entry.method.mapping,
            seed,
            self._relative(source),
            self._relative(run.init),
        )
        if grown and start not in self.journal.starts:
            self.journal.starts.append(start)
        record = self.journal.entry(entry.name)
        path = self._relative(run.run_dir)
        if path not in {known.path for known in record.runs}:
            record.record(RunRecord(seed, rate, path, "unfinished"))
            self._save()
        name = f"{entry.name}, seed {seed}, rate {rate:g}"
        result = self.sitter.sit(run, name=name, flops=self._flops(entry))
        record.record(
            RunRecord(seed, rate, path, result.status, result.diverged_at, result.final_loss)
        )
        self._save()

    def _remaining_flops(self) -> float:
        """Of the runs that are not known to be over; for a rate to be chosen any will do."""
        total = 0.0
        for seed in self.config.seeds:
            for spec in self._used_sources():
                known = any((s.name, s.seed) == (spec.name, seed) for s in self.journal.sources)
                total += 0.0 if spec.folder or known else planned_cost(spec.run).exact
            for entry in self.config.entries:
                swept = seed == self.config.seeds[0] and not entry.rate_of
                runs = [run for run in self.journal.entry(entry.name).runs if run.seed == seed]
                over = sum(run.status != "unfinished" for run in runs)
                left = max((len(entry.rates) if swept else 1) - over, 0)
                total += self._flops(entry) * left
        return total

    def _flops(self, entry: Entry) -> float:
        """Of one run, with its teacher's."""
        return planned_cost(entry.run, teacher=self.config.teacher(entry)).exact
