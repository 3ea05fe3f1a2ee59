"""Reading run folders (effects: files)."""

import csv
import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from b2b_jax.report.errors import ReportError

Role = Literal["source", "scratch", "grown"]
METHOD_NAMES = {"fpi": "FPI", "aki": "AKI", "direct_copy": "DirectCopy", "random": "random growth"}
PROGRESSIVE_NAMES = {"stack": "StackBERT", "interpolate": "interpolated stacking", "mslt": "MSLT"}


@dataclass(frozen=True)
class Curve:
    """Held-out loss of the whole model over a run; one entry per evaluation.

    Attributes:
        steps: updates done.
        loss: nats per prediction.
        sub_model_mean: mean held-out loss of the sub-models; nan outside of stage one.
        layers: of the model that was evaluated, fewer than the target's while depth still grows.
        exact: FLOPs spent, matrix products of the compiled program.
        electra: FLOPs spent, by ELECTRA's accounting.
        seconds: of training.
    """

    steps: np.ndarray
    loss: np.ndarray
    sub_model_mean: np.ndarray
    exact: np.ndarray
    electra: np.ndarray
    seconds: np.ndarray
    layers: np.ndarray


@dataclass(frozen=True)
class Run:
    """One training run.

    Attributes:
        path: its folder.
        label: what a reader calls it.
        role: what it is compared as.
        curve: held-out loss over the run.
        stage_one_steps: steps of sub-model training.
        total_steps: planned length.
        model: its model config.
        evaluation: the settings on which its held-out loss depends.
        source: folder that its parameters were grown from, or empty.
        source_cost: FLOPs ("exact", "electra") and "seconds" spent on the source, if known.
    """

    path: Path
    label: str
    role: Role
    curve: Curve
    stage_one_steps: int
    total_steps: int
    model: dict[str, Any]
    evaluation: dict[str, Any] = field(default_factory=dict)
    source: str = ""
    source_cost: dict[str, float] = field(default_factory=dict)

    @property
    def is_complete(self) -> bool:
        """Whether training reached its planned length."""
        return bool(self.curve.steps[-1] >= self.total_steps)


@dataclass(frozen=True)
class Comparison:
    """Runs that belong together.

    Attributes:
        scratch: the target from random initialisation, if it is among the runs.
        grown: runs that start from grown parameters.
        sources: runs of other models, such as the one that was grown.
        skipped: notes on paths that hold no run.
    """

    scratch: Run | None
    grown: tuple[Run, ...]
    sources: tuple[Run, ...]
    skipped: tuple[str, ...]


def read_runs(paths: Sequence[str | Path]) -> Comparison:
    """Read the runs among some paths; files and folders that are no runs are skipped with a note.

    Raises:
        ReportError: lists every run that cannot be read, or says that there is none.
    """
    runs, skipped, broken = [], [], []
    for path in map(Path, paths):
        if not path.exists():
            broken.append(f"{path}: no such folder")
        elif not (path / "metrics.csv").exists():
            grown = (path / "growth_plan.json").exists()
            skipped.append(f"{path}: {'grown, not trained' if grown else 'not a run'}; skipped")
        else:
            try:
                runs.append(_read_run(path))
            except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError) as error:
                broken.append(f"{path}: {error}")
    if broken:
        raise ReportError("These runs cannot be read:\n  " + "\n  ".join(broken))
    if not runs:
        raise ReportError(
            "None of these folders holds a run that has been trained: "
            + ", ".join(str(path) for path in paths)
        )
    return _assign_roles(runs, skipped)


def _assign_roles(runs: list[Run], skipped: list[str]) -> Comparison:
    grown = [run for run in runs if run.role == "grown"]
    fresh = [run for run in runs if run.role != "grown"]
    target = grown[0].model if grown else max(fresh, key=_size).model
    other = [run for run in grown if _shape(run.model) != _shape(target)]
    if other:
        raise ReportError(
            "These grown runs have different models and cannot share a baseline:\n  "
            + "\n  ".join(str(run.path) for run in (grown[0], *other))
        )
    scratch = [run for run in fresh if _shape(run.model) == _shape(target)]
    if len(scratch) > 1:
        raise ReportError(
            "More than one run of the target from random initialisation; give one of:\n  "
            + "\n  ".join(str(run.path) for run in scratch)
        )
    _check_evaluation([*scratch, *grown])
    return Comparison(
        scratch=replace(scratch[0], role="scratch", label="scratch") if scratch else None,
        grown=tuple(grown),
        sources=tuple(
            replace(run, role="source", label="source model") for run in fresh if run not in scratch
        ),
        skipped=tuple(skipped),
    )


def _check_evaluation(runs: list[Run]) -> None:
    """Losses on other text, other windows or other masks say nothing about each other."""
    found = [
        f"{run.path}: {name} is {value!r}, in {runs[0].path} {runs[0].evaluation.get(name)!r}"
        for run in runs[1:]
        for name, value in run.evaluation.items()
        if value != runs[0].evaluation.get(name)
    ]
    if found:
        raise ReportError("These runs are evaluated differently:\n  " + "\n  ".join(found))


def _evaluation(config: dict[str, Any]) -> dict[str, Any]:
    data = {f"data.{k}": v for k, v in config.get("data", {}).items() if k != "prepared_dir"}
    names = ("sequence_length", "masked_positions", "eval_batches")
    return data | {f"train.{k}": config["train"].get(k) for k in names}


def _size(run: Run) -> int:
    return run.model["hidden_size"] ** 2 * run.model["num_hidden_layers"]


def _shape(model: dict[str, Any]) -> tuple[Any, ...]:
    names = ("family", "vocab_size", "hidden_size", "num_hidden_layers", "intermediate_size")
    return tuple(model[name] for name in names)


def _read_run(path: Path) -> Run:
    config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    lineage_file = path / "lineage.json"
    lineage = json.loads(lineage_file.read_text()) if lineage_file.exists() else {}
    stage_one = config["two_stage"]["steps"]
    label = _label(config, lineage) or path.name
    return Run(
        path=path,
        label=label,
        role="grown" if _label(config, lineage) else "scratch",
        curve=read_curve(path / "metrics.csv", num_layers=config["model"]["num_hidden_layers"]),
        stage_one_steps=stage_one,
        total_steps=config["train"]["steps"],
        model=config["model"],
        evaluation=_evaluation(config),
        source=lineage.get("source", ""),
        source_cost=_source_cost(lineage),
    )


def _label(config: dict[str, Any], lineage: dict[str, Any]) -> str:
    """What a run does beyond training a random model; "" if that is all."""
    words = []
    method = lineage.get("method", "continued")
    if config["init"] and (method != "random" or lineage.get("source")):
        words.append(METHOD_NAMES.get(method, method))
    progressive = config.get("progressive", {}).get("method", "none")
    if progressive != "none":
        words.append(PROGRESSIVE_NAMES.get(progressive, progressive))
    if config.get("inherit", {}).get("steps"):
        words.append("Knowledge Inheritance")
    if words and config["two_stage"]["steps"]:
        words.append("two-stage")
    return " + ".join(words)


def _source_cost(lineage: dict[str, Any]) -> dict[str, float]:
    """FLOPs and seconds of the models that a run needed, as far as they are known."""
    parts = [part for part in ("source", "teacher") if part in lineage]
    if lineage.get("source_fingerprint") == lineage.get("teacher_fingerprint"):
        parts = parts[:1]  # trained once
    costs = [
        {**(lineage.get(f"{part}_flops") or {}), "seconds": lineage.get(f"{part}_seconds")}
        for part in parts
    ]
    units = ("exact", "electra", "seconds")
    known = [unit for unit in units if all(cost.get(unit) is not None for cost in costs)]
    return {unit: sum(cost[unit] for cost in costs) for unit in known if costs}


def read_curve(path: Path, *, num_layers: int) -> Curve:
    """Read the evaluations of a run from its metrics.csv.

    Args:
        path: the file.
        num_layers: of the whole model, which is what rows speak of that do not say.

    Raises:
        ValueError: if it holds no evaluation.
    """
    with path.open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["heldout_loss"] and row["seconds"]]
    if not rows:
        raise ValueError("metrics.csv holds no evaluation yet; train it further")

    def column(name: str, default: float = float("nan")) -> np.ndarray:
        return np.array([float(row.get(name) or default) for row in rows])

    return Curve(
        steps=column("step"),
        loss=column("heldout_loss"),
        sub_model_mean=column("heldout_submodel_mean"),
        exact=column("flops_exact"),
        electra=column("flops_electra"),
        seconds=column("seconds"),
        layers=column("heldout_layers", num_layers),
    )
