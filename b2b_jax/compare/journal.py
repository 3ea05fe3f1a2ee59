"""What a comparison has done so far, as a file that the report is made from (effects: files)."""

import dataclasses
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from b2b_jax.report import ReportError
from b2b_jax.report.runs import read_curve
from b2b_jax.report.study import MethodResult, Status, Study, Trial

FILE = "comparison.json"
FORMAT = 1


@dataclass
class RunRecord:
    """One training.

    Attributes:
        seed: of everything random in it.
        rate: peak learning rate.
        path: its folder, relative to the comparison's.
        status: how far it is.
        diverged_at: the step whose loss was no number.
        final_loss: held-out loss at its end.
    """

    seed: int
    rate: float
    path: str
    status: Status
    diverged_at: int | None = None
    final_loss: float | None = None


@dataclass
class EntryRecord:
    """One method.

    Attributes:
        name: its key in the config.
        kind: which of `METHODS` it is.
        label: what a reader calls it.
        num_layers: of the target.
        source: name of the small model that it uses, "" for none.
        rate_of: the entry whose learning rate it takes, or "".
        rates: peak learning rates to try with the first seed.
        rate: the one chosen.
        runs: those begun so far.
        notes: why some of them are missing.
    """

    name: str
    kind: str
    label: str
    num_layers: int
    source: str
    rate_of: str
    rates: list[float]
    rate: float | None = None
    runs: list[RunRecord] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def record(self, run: RunRecord) -> None:
        """Add a run, or replace what was said of it before."""
        self.runs = [kept for kept in self.runs if kept.path != run.path] + [run]


@dataclass
class SourceRecord:
    """One small model, trained with one seed.

    Attributes:
        name: its key in the config.
        seed: of the runs that use it.
        path: its folder.
        cost: "exact" and "electra" FLOPs and "seconds" spent on it, as far as known.
        trained_here: whether its folder is one of the comparison.
    """

    name: str
    seed: int
    path: str
    cost: dict[str, float]
    trained_here: bool


@dataclass
class StartRecord:
    """First parameters that were grown from a source."""

    growth: str
    mapping: str
    seed: int
    source: str
    path: str


@dataclass
class Journal:
    """Everything about a comparison that its report needs besides the runs' own files.

    Attributes:
        title: of tables and pictures.
        command: what was run.
        code: version of the package and of the code that results depend on.
        machine: what it ran on.
        seeds: of the runs.
        entries: in the order to show.
        sources: the small models.
        starts: grown parameters, for pictures of their attention.
        tables: file stem -> title and methods of what else to show by itself.
    """

    title: str
    command: str
    code: str
    machine: str
    seeds: list[int]
    entries: list[EntryRecord] = field(default_factory=list)
    sources: list[SourceRecord] = field(default_factory=list)
    starts: list[StartRecord] = field(default_factory=list)
    tables: dict[str, dict[str, Any]] = field(default_factory=dict)

    def entry(self, name: str) -> EntryRecord:
        """The record of a method."""
        return next(entry for entry in self.entries if entry.name == name)

    def to_dict(self) -> dict[str, Any]:
        """JSON values."""
        return {"format": FORMAT, **dataclasses.asdict(self)}

    @classmethod
    def read(cls, root: str | Path) -> "Journal":
        """Read the journal of a comparison's folder.

        Raises:
            ReportError: if there is none, or it cannot be read.
        """
        path = Path(root) / FILE
        try:
            values = json.loads(path.read_text(encoding="utf-8"))
            if values.pop("format") != FORMAT:
                raise ValueError("another format; run b2b compare again")
            entries = [
                EntryRecord(**{**entry, "runs": [RunRecord(**run) for run in entry["runs"]]})
                for entry in values.pop("entries")
            ]
            sources = [SourceRecord(**source) for source in values.pop("sources")]
            starts = [StartRecord(**start) for start in values.pop("starts")]
            return cls(**values, entries=entries, sources=sources, starts=starts)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ReportError(f"{path}: cannot be read: {error}") from error


def read_study(root: str | Path, journal: Journal, *, table: str = "") -> Study:
    """The runs of a comparison with their curves.

    Args:
        root: folder of the comparison.
        journal: what it has done.
        table: which of its tables; "" for all methods.

    Raises:
        ReportError: if no run has an evaluation yet, or one cannot be read.
    """
    root = Path(root)
    wanted = journal.tables[table]["methods"] if table else [e.name for e in journal.entries]
    results = {name: _method_result(root, journal, journal.entry(name)) for name in wanted}
    if not any(result.trials for result in results.values()):
        raise ReportError(f"{root}: none of {', '.join(wanted)} has an evaluation yet")
    scratch_name = next((e.name for e in journal.entries if e.kind == "scratch"), "")
    scratch = results.pop(scratch_name, None)
    if scratch is None and scratch_name:
        scratch = _method_result(root, journal, journal.entry(scratch_name))
    used = {journal.entry(name).source for name in wanted}
    curves = {}
    for source in journal.sources:
        if source.trained_here and source.name in used and source.name not in curves:
            layers = journal.entries[0].num_layers
            curves[source.name] = read_curve(root / source.path / "metrics.csv", num_layers=layers)
    return Study(
        title=journal.tables[table]["title"] if table else journal.title,
        num_layers=journal.entries[0].num_layers,
        scratch=scratch if scratch and scratch.trials else None,
        methods=tuple(result for result in results.values() if result.trials),
        sources={f"source {name}": curve for name, curve in curves.items()},
        notes=tuple(
            f"{journal.entry(name).label} is not complete, since {note}."
            for name in wanted
            for note in journal.entry(name).notes
        ),
    )


def _method_result(root: Path, journal: Journal, entry: EntryRecord) -> MethodResult:
    swept = [run for run in entry.runs if run.seed == journal.seeds[0]]
    rate = entry.rate
    if rate is None and swept:  # the sweep is not over: the best so far
        done = [run for run in swept if run.final_loss is not None] or swept
        rate = min(done, key=lambda run: run.final_loss or float("inf")).rate
    trials = []
    for run in entry.runs:
        if run.rate != rate:
            continue
        try:
            curve = read_curve(root / run.path / "metrics.csv", num_layers=entry.num_layers)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError) as error:
            raise ReportError(f"{root / run.path}: {error}") from error
        cost = next(
            (s.cost for s in journal.sources if s.name == entry.source and s.seed == run.seed), {}
        )
        if entry.source and not cost:
            cost = {"unknown": float("nan")}  # empty would say that it uses none
        trials.append(Trial(run.seed, run.rate, curve, run.status, run.diverged_at, dict(cost)))
    return MethodResult(
        name=entry.name,
        label=entry.label,
        learning_rate=rate or 0.0,
        trials=tuple(sorted(trials, key=lambda trial: trial.seed)),
        sweep={run.rate: run.final_loss for run in swept} if len(entry.rates) > 1 else {},
        rate_from=entry.rate_of,
        rate_from_label=journal.entry(entry.rate_of).label if entry.rate_of else "",
    )
