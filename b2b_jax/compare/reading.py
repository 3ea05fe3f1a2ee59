"""From a YAML file to a `CompareConfig`, checked as a whole (effects: reads files)."""

import dataclasses
import difflib
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, get_args, get_type_hints

from b2b_jax.compare.config import (
    CompareConfig,
    Entry,
    SourceSeeds,
    SourceSpec,
    TableSpec,
    TrainMissing,
)
from b2b_jax.compare.methods import METHODS, Method
from b2b_jax.compare.values import Values, fraction
from b2b_jax.config import build, merge, model_from_values, raise_problems, read_yaml
from b2b_jax.growth.depth import NamedDepth
from b2b_jax.models import ModelConfig
from b2b_jax.train.config import RunConfig

FIELDS = (
    "run_dir",
    "title",
    "base",
    "target",
    "sources",
    "methods",
    "seeds",
    "peak_learning_rates",
    "source_seeds",
    "train_missing",
    "first_losses",
    "tables",
)
ENTRY_FIELDS = ("method", "source", "peak_learning_rates", "learning_rate_of", "run")
METHOD_FIELDS = tuple(entry.name for entry in dataclasses.fields(Method))


def load_compare_config(path: str | Path) -> CompareConfig:
    """Read a comparison and check all of it.

    Raises:
        ConfigError: lists every unknown method and field, every wrong value, and every run that
            could not start.
    """
    values = read_yaml(path)
    reader = _Reader()
    config = reader.config(values)
    raise_problems(f"{path} cannot be compared", list(dict.fromkeys(reader.problems)))
    return config


class _Reader(Values):
    """Reads part after part and collects what is wrong."""

    def config(self, values: Mapping[str, Any]) -> CompareConfig:
        self.unknown("", values, FIELDS)
        run_dir = values.get("run_dir", "")
        if not isinstance(run_dir, str) or not run_dir:
            self.problems.append(f"run_dir: found {run_dir!r}, expected a folder to write to")
        base = self.mapping(values, "base")
        target, found = model_from_values(values.get("target", {}), where="target.")
        self.problems += found
        if "model" in base:
            self.problems.append("base.model: found a model; use target and sources instead")
        rates = self.numbers(values, "peak_learning_rates", float)
        seeds = tuple(self.numbers(values, "seeds", int)) or (0,)
        sources = self._sources(self.mapping(values, "sources"), base)
        entries = self._entries(self.mapping(values, "methods"), base, target, sources, rates)
        return CompareConfig(
            run_dir=str(run_dir),
            title=str(values.get("title", Path(str(run_dir)).name)),
            target=target,
            sources=sources,
            entries=entries,
            seeds=seeds,
            source_seeds=self.choice(values, "source_seeds", get_args(SourceSeeds)),
            train_missing=self.choice(values, "train_missing", get_args(TrainMissing)),
            first_losses=self._first_losses(values, target),
            tables=self._tables(self.mapping(values, "tables"), entries),
        )

    def _run(self, values: Any, model: ModelConfig, where: str) -> RunConfig:
        """A run of a model, checked but for what is only known later."""
        run, found = build(RunConfig, values, base=RunConfig(model=model), where=where)
        self.problems += found
        if not found:
            checked = dataclasses.replace(run, run_dir="-")
            checked = dataclasses.replace(
                checked, inherit=dataclasses.replace(run.inherit, teacher="", steps=0)
            )
            self.problems += [f"{where}{problem}" for problem in checked.problems()]
        return run

    def _sources(
        self, values: Mapping[str, Any], base: Mapping[str, Any]
    ) -> tuple[SourceSpec, ...]:
        specs = []
        for name, given in values.items():
            where = f"sources.{name}."
            fields = dict(given) if isinstance(given, Mapping) else {}
            if not isinstance(given, Mapping):
                self.problems.append(f"sources.{name}: found {given!r}, expected a model or folder")
            folder = fields.pop("folder", "")
            model, found = model_from_values(fields.pop("model", {}), where=f"{where}model.")
            self.problems += found
            run = self._run(merge(base, fields), model, where)
            specs.append(SourceSpec(name, run, str(folder)))
        return tuple(specs)

    def _entries(
        self,
        values: Mapping[str, Any],
        base: Mapping[str, Any],
        target: ModelConfig,
        sources: tuple[SourceSpec, ...],
        rates: tuple[float, ...],
    ) -> tuple[Entry, ...]:
        if not values:
            self.problems.append(f"methods: found none, expected some of {', '.join(METHODS)}")
        entries = []
        for name, given in values.items():
            where, fields = f"methods.{name}.", dict(given or {})
            self.unknown(where, fields, (*ENTRY_FIELDS, *METHOD_FIELDS))
            chosen = str(fields.get("method", name))
            if chosen not in METHODS:
                near = difflib.get_close_matches(chosen, METHODS, n=1)
                hint = f"; did you mean {near[0]!r}?" if near else ""
                self.problems.append(
                    f"methods.{name}: unknown method {chosen!r}, expected one of "
                    f"{', '.join(METHODS)}{hint}"
                )
                continue
            method = self._method(METHODS[chosen], fields, where)
            source = str(fields.get("source", sources[0].name if sources else ""))
            if method.uses_source and source not in {spec.name for spec in sources}:
                self.problems.append(
                    f"{where}source: found {source!r}, expected one of the sources: "
                    f"{[spec.name for spec in sources]}"
                )
            own = self.numbers(fields, "peak_learning_rates", float)
            run = self._schedule(method, fields.get("run") or {}, base, target, where)
            entries.append(
                Entry(
                    name,
                    method,
                    source if method.uses_source else "",
                    own or rates or (run.optimizer.peak_learning_rate,),
                    str(fields.get("learning_rate_of", "")),
                    run,
                )
            )
            self._check_depth(entries[-1], sources, where)
        known = {entry.name: entry for entry in entries}
        for entry in entries:
            other = known.get(entry.rate_of)
            if entry.rate_of and (other is None or other.rate_of or other is entry):
                self.problems.append(
                    f"methods.{entry.name}.learning_rate_of: found {entry.rate_of!r}, expected a "
                    "method with rates of its own"
                )
        return tuple(entries)

    def _check_depth(self, entry: Entry, sources: tuple[SourceSpec, ...], where: str) -> None:
        layers = {spec.name: spec.run.model.num_hidden_layers for spec in sources}
        same = layers.get(entry.source) == entry.run.model.num_hidden_layers
        if entry.method.depth != "stack" and same:
            self.problems.append(
                f"{where}depth: found {entry.method.depth!r}, but source {entry.source!r} has as "
                "many layers as the target; name a shallower one with source"
            )

    def _method(self, method: Method, fields: Mapping[str, Any], where: str) -> Method:
        """A method with the fields that an entry changes."""
        changes: dict[str, Any] = {}
        hints = get_type_hints(Method)
        for name in METHOD_FIELDS:
            if name not in fields:
                continue
            value, hint = fields[name], hints[name]
            try:
                if hint is Fraction:
                    value = fraction(value)
                elif name == "stages":
                    value = tuple(map(fraction, value))
                elif name == "depth":
                    value = value if isinstance(value, str) else tuple(map(int, value))
                    if isinstance(value, str) and value not in get_args(NamedDepth):
                        raise ValueError
                elif get_args(hint):
                    if value not in get_args(hint):
                        raise ValueError
                else:
                    value = hint(value)
            except (TypeError, ValueError, ZeroDivisionError):
                self.problems.append(f"{where}{name}: found {fields[name]!r}, which cannot be used")
                continue
            changes[name] = value
        return dataclasses.replace(method, **changes)

    def _schedule(
        self,
        method: Method,
        values: Any,
        base: Mapping[str, Any],
        target: ModelConfig,
        where: str,
    ) -> RunConfig:
        """The run of a method: its fractions in steps."""
        scratch, _ = build(RunConfig, base, base=RunConfig(model=target))
        steps = scratch.train.steps

        def share(fraction: Fraction) -> int:
            return round(fraction * steps)

        derived: dict[str, Any] = {"train": {"steps": share(method.length)}}
        if method.stage_one:
            derived["two_stage"] = {"steps": share(method.stage_one)}
        if method.progressive != "none":
            stages = [share(stage) for stage in method.stages]
            derived["progressive"] = {"method": method.progressive, "stage_steps": stages}
        if method.inherit:
            derived["inherit"] = {
                "teacher": "-",
                "steps": share(method.inherit),
                "temperature": method.temperature,
                "top_k": method.top_k,
            }
        return self._run(merge(merge(base, derived), values), target, where)

    def _first_losses(
        self, values: Mapping[str, Any], target: ModelConfig
    ) -> tuple[ModelConfig, ...]:
        models = []
        for index, fields in enumerate(values.get("first_losses") or []):
            where = f"first_losses.{index}."
            model, found = model_from_values(fields, base=target, where=where)
            self.problems += found or [f"{where}{problem}" for problem in model.problems()]
            models.append(model)
        return tuple(models)

    def _tables(
        self, values: Mapping[str, Any], entries: tuple[Entry, ...]
    ) -> dict[str, TableSpec]:
        names, tables = [entry.name for entry in entries], {}
        for stem, fields in values.items():
            methods = fields.get("methods", []) if isinstance(fields, Mapping) else []
            unknown = [name for name in methods if name not in names]
            if unknown or not methods:
                self.problems.append(
                    f"tables.{stem}.methods: found {methods}, expected some of {names}"
                )
            else:
                tables[stem] = TableSpec(str(fields.get("title", stem)), tuple(methods))
        return tables
