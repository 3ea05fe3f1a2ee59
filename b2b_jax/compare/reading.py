"""From a YAML file to a `CompareConfig`, checked as a whole (effects: reads files)."""

import dataclasses
import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

from b2b_jax.compare.config import (
    CompareConfig,
    Entry,
    SourceSeeds,
    SourceSpec,
    TableSpec,
    TrainMissing,
)
from b2b_jax.compare.methods import METHODS, Method
from b2b_jax.compare.schedules import METHOD_FIELDS, changed_method, scheduled
from b2b_jax.compare.values import Values
from b2b_jax.config import build, merge, model_from_values, raise_problems, read_yaml
from b2b_jax.convert import ConvertError, is_hf_folder
from b2b_jax.growth import GrowthError, plan_growth
from b2b_jax.models import ModelConfig
from b2b_jax.train.config import RunConfig
from b2b_jax.train.saved import read_meta
from b2b_jax.train.stored import CheckpointError

FIELDS = tuple(field.name for field in dataclasses.fields(CompareConfig) if field.name != "entries")
FIELDS += ("base", "methods", "peak_learning_rates")
ENTRY_FIELDS = ("method", "source", "peak_learning_rates", "learning_rate_of", "run")
EVALUATIONS = 20
"""Of a run of as many steps as scratch, where the config does not say."""
# What a comparison sets itself, so that nothing else may.
OWN = ("run_dir", "init", "model", "train.seed", "inherit.teacher", "inherit.steps")


def load_compare_config(path: str | Path) -> CompareConfig:
    """Read a comparison and check all of it.

    Raises:
        ConfigError: lists every unknown method and field, every wrong value, every growth that is
            not possible and every run that could not start.
    """
    reader = _Reader()
    config = reader.config(read_yaml(path))
    raise_problems(f"{path} cannot be compared", list(dict.fromkeys(reader.problems)))
    return config


@dataclass(frozen=True)
class _Shared:
    """What every entry is read with."""

    base: dict[str, Any]
    target: ModelConfig
    sources: tuple[SourceSpec, ...]
    rates: tuple[float, ...]
    steps: int


class _Reader(Values):
    """Reads part after part and collects what is wrong."""

    def config(self, values: Mapping[str, Any]) -> CompareConfig:
        self.unknown(values, FIELDS)
        run_dir = self.text(values, "run_dir", default="")
        if not run_dir:
            self.problems.append("run_dir: found nothing, expected a folder to write to")
        base = self._base(values)
        target = self._model(values.get("target", {}), "target.")
        whole, _ = build(RunConfig, base, base=RunConfig(model=target))
        sources = self._sources(self.named(values, "sources"), base)
        shared = _Shared(base, target, sources, self.rates(values), whole.train.steps)
        entries = self._entries(self.named(values, "methods"), shared)
        first_losses = tuple(
            self._model(fields, f"first_losses.{index}.", base=target)
            for index, fields in enumerate(self.sequence(values, "first_losses"))
        )
        for index, model in enumerate(first_losses):
            for spec in sources:
                where = f"first_losses.{index}"
                self._check_growth(Method("FPI", growth="fpi"), spec, target=model, where=where)
        return CompareConfig(
            run_dir=run_dir,
            title=self.text(values, "title", default=Path(run_dir).name),
            target=target,
            sources=sources,
            entries=entries,
            seeds=self.seeds(values),
            source_seeds=self.choice(values, "source_seeds", among=get_args(SourceSeeds)),
            train_missing=self.choice(values, "train_missing", among=get_args(TrainMissing)),
            first_losses=first_losses,
            tables=self._tables(self.named(values, "tables"), entries),
        )

    def _base(self, values: Mapping[str, Any]) -> dict[str, Any]:
        base = self.mapping(values, "base")
        self._refuse_own(base, "base.", (*OWN, "inherit", "progressive", "two_stage.steps"))
        whole, found = build(RunConfig, base, where="base.")
        self.problems += found
        if found:
            return {}
        # Costs are read between evaluations, so that a curve needs more than its two ends.
        train = {"eval_every": max(whole.train.steps // EVALUATIONS, 1), **base.get("train", {})}
        return {**base, "train": train}

    def _refuse_own(
        self, values: Mapping[str, Any], where: str, own: tuple[str, ...] = OWN
    ) -> None:
        for name in own:
            section, _, field = name.partition(".")
            inner = values.get(section)
            given = field in inner if field and isinstance(inner, Mapping) else inner is not None
            if given and (not field or isinstance(inner, Mapping)):
                self.problems.append(f"{where}{name}: found here, but the comparison sets it")

    def _model(self, values: Any, where: str, *, base: ModelConfig | None = None) -> ModelConfig:
        model, found = model_from_values(values, base=base, where=where)
        self.problems += found or [f"{where}{problem}" for problem in model.problems()]
        return model

    def _run(self, values: Any, model: ModelConfig, *, where: str) -> RunConfig:
        """A run of a model, checked but for what is only known later."""
        run, found = build(RunConfig, values, base=RunConfig(model=model), where=where)
        self.problems += found
        if not found:
            teacher = "." if run.inherit.steps else ""  # any folder that exists
            inherit = dataclasses.replace(run.inherit, teacher=teacher)
            checked = dataclasses.replace(run, run_dir="-", inherit=inherit)
            # The model's own are said where the model is.
            known = {f"model.{problem}" for problem in model.problems()}
            problems = [problem for problem in checked.problems() if problem not in known]
            self.problems += [f"{where}{problem}" for problem in problems]
        return run

    def _sources(
        self, values: Mapping[str, Any], base: Mapping[str, Any]
    ) -> tuple[SourceSpec, ...]:
        specs = []
        for name in values:
            where, fields = f"sources.{name}.", self.mapping(values, name, where="sources.")
            folder = self.text(fields, "folder", default="", where=where)
            if folder:
                self.problems += [
                    f"{where}{field}: found next to a folder, whose model is trained already"
                    for field in fields
                    if field != "folder"
                ]
                if not Path(folder).is_dir():
                    self.problems.append(f"{where}folder: {folder}: no such folder")
                    continue
                specs.append(SourceSpec(name, RunConfig(model=_model_in(folder)), folder))
                continue
            model = self._model(fields.pop("model", {}), f"{where}model.")
            self._refuse_own(fields, where)
            specs.append(SourceSpec(name, self._run(merge(base, fields), model, where=where)))
        return tuple(specs)

    def _entries(self, values: Mapping[str, Any], shared: _Shared) -> tuple[Entry, ...]:
        if not values:
            self.problems.append(f"methods: found none, expected some of {', '.join(METHODS)}")
        found = [self._entry(name, values, shared) for name in values]
        entries = [entry for entry in found if entry is not None]
        known = {entry.name: entry for entry in entries}
        for entry in entries:
            other = known.get(entry.rate_of)
            if entry.rate_of and (other is None or other.rate_of or other is entry):
                self.problems.append(
                    f"methods.{entry.name}.learning_rate_of: found {entry.rate_of!r}, expected a "
                    "method with rates of its own"
                )
        return tuple(entries)

    def _entry(self, name: str, values: Mapping[str, Any], shared: _Shared) -> Entry | None:
        where, fields = f"methods.{name}.", self.mapping(values, name, where="methods.")
        self.unknown(fields, (*ENTRY_FIELDS, *METHOD_FIELDS), where=where)
        kind = self.text(fields, "method", default=name, where=where)
        if kind not in METHODS:
            near = difflib.get_close_matches(kind, METHODS, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else ""
            self.problems.append(
                f"methods.{name}: unknown method {kind!r}, expected one of "
                f"{', '.join(METHODS)}{hint}"
            )
            return None
        method, found = changed_method(METHODS[kind], fields, where=where)
        if name != kind and not fields.get("label"):
            method = dataclasses.replace(method, label=f"{method.label} ({name})")
        self.problems += found
        known = {spec.name: spec for spec in shared.sources}
        source = self.text(fields, "source", default=next(iter(known), ""), where=where)
        own = self.mapping(fields, "run", where=where)
        self._refuse_own(own, f"{where}run.", (*OWN, "optimizer.peak_learning_rate"))
        derived, found = scheduled(method, shared.steps, where=where)
        self.problems += found
        run = self._run(merge(merge(shared.base, derived), own), shared.target, where=where)
        if method.uses_source and source not in known:
            self.problems.append(
                f"{where}source: found {source!r}, expected one of the sources: {list(known)}"
            )
        elif method.uses_source:
            self._check_source(method, known[source], target=shared.target, where=where)
        self._check_grown(method, run, where=where)
        rates = self.rates(fields, where=where) or shared.rates
        return Entry(
            name,
            kind,
            method,
            source if method.uses_source else "",
            rates or (run.optimizer.peak_learning_rate,),
            self.text(fields, "learning_rate_of", default="", where=where),
            run,
        )

    def _check_source(
        self, method: Method, spec: SourceSpec, *, target: ModelConfig, where: str
    ) -> None:
        model = spec.run.model
        if method.depth != "stack" and model.num_hidden_layers == target.num_hidden_layers:
            self.problems.append(
                f"{where}depth: found {method.depth!r}, but source {spec.name!r} has as many "
                "layers as the target; name a shallower one with source"
            )
        if method.inherit and model.vocab_size != target.vocab_size:
            self.problems.append(
                f"{where}source: {spec.name!r} has {model.vocab_size} tokens, the target "
                f"{target.vocab_size}; a teacher needs the same"
            )
        if method.growth != "random":
            self._check_growth(method, spec, target=target, where=where.rstrip("."))

    def _check_growth(
        self, method: Method, spec: SourceSpec, *, target: ModelConfig, where: str
    ) -> None:
        source = spec.run.model
        if spec.folder and is_hf_folder(spec.folder):
            source = source.replace(heads=target.heads)  # read with those of the target
        if source.problems() or target.problems() or method.growth == "random":
            return
        try:
            plan_growth(
                source,
                target,
                method=method.growth,
                mapping=method.mapping,
                depth=method.depth,
            )
        except GrowthError as error:
            self.problems.append(f"{where}: source {spec.name!r} cannot grow so: {error}")

    def _check_grown(self, method: Method, run: RunConfig, *, where: str) -> None:
        """What only a grown model can do."""
        if method.growth in ("fpi", "aki"):
            return
        for name, found, plain in (
            ("optimizer.rate_scale", run.optimizer.rate_scale, "none"),
            ("optimizer.state", run.optimizer.state, "reset"),
            ("log.symmetry", run.log.symmetry, "off"),
        ):
            if found != plain:
                self.problems.append(f"{where}{name}: found {found!r}, which is for fpi and aki")

    def _tables(
        self, values: Mapping[str, Any], entries: tuple[Entry, ...]
    ) -> dict[str, TableSpec]:
        names, tables = [entry.name for entry in entries], {}
        for stem in values:
            where, fields = f"tables.{stem}.", self.mapping(values, stem, where="tables.")
            self.unknown(fields, ("title", "methods"), where=where)
            methods = self.sequence(fields, "methods", where=where)
            if not methods or any(name not in names for name in methods):
                self.problems.append(f"{where}methods: found {methods}, expected some of {names}")
            title = self.text(fields, "title", default=stem, where=where)
            tables[stem] = TableSpec(title, tuple(map(str, methods)))
        return tables


def _model_in(folder: str) -> ModelConfig:
    """The config of a model that is there already; the default where it is not."""
    try:
        return ModelConfig.from_dict(read_meta(folder)["model"])
    except (CheckpointError, ConvertError, OSError):
        return ModelConfig()  # that it is missing is said when it is needed
