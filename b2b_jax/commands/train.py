"""`b2b train`: start or continue a run (effects)."""

import json
import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import yaml

from b2b_jax.commands.folders import write_json, write_text, write_yaml
from b2b_jax.commands.origin import Origin, find_origin, init_fingerprint
from b2b_jax.commands.prepare import prepare_command
from b2b_jax.commands.run_card import describe_run, run_card
from b2b_jax.commands.teacher import load_teacher, with_teacher
from b2b_jax.config import raise_problems
from b2b_jax.data import Prepared
from b2b_jax.models import ConfigError, ModelConfig
from b2b_jax.report.chips import peak_flops
from b2b_jax.report.flops import StepCost, forward_cost, step_cost
from b2b_jax.train.checkpoint import Checkpoints, finished_steps
from b2b_jax.train.config import RunConfig, changed_fields, flat_fields
from b2b_jax.train.lock import sole_user
from b2b_jax.train.loop import Outcome, Trainer
from b2b_jax.train.meter import Accounting
from b2b_jax.train.processes import is_first, require_equal, told_by_the_first, wait_for_all
from b2b_jax.train.saved import check_model
from b2b_jax.train.stored import DamagedCheckpoint
from b2b_jax.train.writers import Reporter, duration


def train_command(config: RunConfig, *, reporter: Reporter) -> Outcome:
    """Train to the end, or go on from the newest checkpoint, or say that the run is finished.

    Raises:
        ConfigError: if the folder holds a run with other results, or parts do not fit together.
    """
    run_dir = Path(config.run_dir)
    fields = flat_fields(config.to_dict())
    require_equal({name: repr(value) for name, value in fields.items()})
    with sole_user(run_dir, reporter=reporter):
        # Whoever had the run before may have written until now.
        folder = run_dir / "checkpoints"
        found = finished_steps(run_dir) if folder.is_dir() else "no folder"
        require_equal({f"checkpoints of {run_dir}": str(found)})
        return _sit(config, run_dir, reporter=reporter)


def _sit(config: RunConfig, run_dir: Path, *, reporter: Reporter) -> Outcome:
    """What remains of the run, or a part of that."""
    _refuse_other_run(run_dir, config)
    begun = _begun(run_dir, config)
    newest = "nothing" if begun is None else f"step {begun.step}"
    require_equal({f"newest checkpoint of {run_dir}": newest})  # before any process fills it
    if begun is not None and _is_finished(run_dir, begun, config, reporter=reporter):
        reporter.note(f"{run_dir}: finished before, at step {begun.step}; nothing to do")
        progress = begun.meta["progress"]
        waited = progress.get("data_wait", 0.0)  # older checkpoints do not know
        return Outcome(0, begun.step, progress["heldout_loss"], progress["seconds"], waited)
    prepared = _prepared(config, reporter=reporter)
    _check_vocabulary(config, prepared)
    # Of a run that has a checkpoint the origin is what it recorded, whatever init holds by now.
    origin = (
        find_origin(config, reporter=reporter) if begun is None else Origin(begun.meta["lineage"])
    )
    lineage = origin.lineage
    found = f"{lineage.get('init_fingerprint')}, step {lineage.get('init_step')}"
    require_equal({f"model of init {config.init}": found})
    _check_grown(config, lineage)
    teacher = load_teacher(config) if config.inherit.steps else None
    if teacher is not None:
        lineage = with_teacher(lineage, teacher, config)
    if is_first():
        write_yaml(run_dir / "config.yaml", config.to_dict())
        write_text(run_dir / "README.md", run_card(config, lineage))
        if lineage.get("growth_plan"):
            write_json(run_dir / "growth_plan.json", lineage["growth_plan"])
        of_run = {name: value for name, value in lineage.items() if name != "growth_plan"}
        write_json(run_dir / "lineage.json", of_run)
    accounting = price(config, teacher=None if teacher is None else teacher.config)
    trainer = Trainer(
        config,
        prepared,
        accounting=accounting,
        reporter=reporter,
        initial=origin.initial,
        lineage=lineage,
        teacher=teacher,
    )
    # Whole models of the host, which the trainer lets go of when they are on their devices.
    del origin, teacher
    describe_run(config, trainer, accounting=accounting, reporter=reporter)
    outcome = trainer.run()
    # That of a run which was stopped is of some step before.
    is_known = outcome.exit_code == 0 and outcome.heldout_loss is not None
    heldout = f", held-out loss {outcome.heldout_loss:.4f}" if is_known else ""
    waited = 100 * outcome.data_wait / outcome.seconds if outcome.seconds else 0.0
    reporter.note(
        f"{run_dir}: {'finished' if outcome.exit_code == 0 else 'stopped and saved'} at step "
        f"{outcome.step}{heldout}, {duration(outcome.seconds)} of training, {waited:.1f} % of it "
        "waiting for data"
    )
    if outcome.exit_code:
        reporter.note("repeat the command to continue")
    return outcome


def _prepared(config: RunConfig, *, reporter: Reporter) -> Prepared:
    """The run's tokens; made by the first process alone where all see the same folder."""
    if not is_first():
        wait_for_all("the first process has prepared the data")
    prepared = prepare_command(config.data, reporter=reporter)
    if is_first():
        wait_for_all("the first process has prepared the data")
    require_equal({"prepared data": f"{prepared.path}, fingerprint {prepared.fingerprint[:12]}"})
    return prepared


def _is_finished(run_dir: Path, begun: "_Begun", config: RunConfig, *, reporter: Reporter) -> bool:
    """Whether the result is there, and what was written; the same in every process."""
    if begun.step < config.train.steps:
        return False
    problem = ""
    try:
        check_model(run_dir, step=begun.step)  # in all of them: Orbax lets them wait for each other
    except DamagedCheckpoint as error:
        problem = str(error)
        reporter.note(f"{error}; the end of the run is trained again")
    return not told_by_the_first(problem)


def price(config: RunConfig, *, teacher: ModelConfig | None = None) -> Accounting:
    """FLOPs of the run's steps by both accountings, and the peak of its devices if known."""
    train, causal = config.train, config.model.is_causal
    sizes = {
        "batch_size": train.batch_size,
        "sequence_length": train.sequence_length,
        "predictions": train.sequence_length - 1 if causal else train.masked_positions,
    }
    peak = peak_flops(jax.devices()[0].device_kind)
    return Accounting(
        step_cost=lambda sub: step_cost(config.model, sub, **sizes),
        teacher_cost=None if teacher is None else forward_cost(teacher, **sizes),
        peak_flops=None if peak is None else peak * jax.device_count(),
    )


def planned_cost(config: RunConfig, *, teacher: ModelConfig | None = None) -> StepCost:
    """FLOPs of a whole run by both accountings; drawn sub-models count with their mean.

    Args:
        config: the run.
        teacher: the model it learns from, if it does.
    """
    accounting, electra, exact = price(config, teacher=teacher), 0.0, 0.0
    for phase in config.schedule.phases:
        costs = [accounting.step_cost(sub) for sub in phase.subs]
        taught = accounting.teacher_cost if phase.needs_teacher else None
        for_teacher = taught or StepCost(0.0, 0.0)
        electra += phase.steps * (
            statistics.fmean(cost.electra for cost in costs) + for_teacher.electra
        )
        exact += phase.steps * (statistics.fmean(cost.exact for cost in costs) + for_teacher.exact)
    return StepCost(electra, exact)


def _refuse_other_run(run_dir: Path, config: RunConfig) -> None:
    try:
        before = yaml.safe_load((run_dir / "config.yaml").read_text(encoding="utf-8"))
    except FileNotFoundError:
        if (run_dir / "checkpoints").exists():
            raise ConfigError(
                f"{run_dir}: holds a model that no run of b2b train wrote; choose another run_dir "
                "(and set init to this folder to start from it)"
            ) from None
        return
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{run_dir}/config.yaml cannot be read: {error}") from error
    # A run that has not saved anything yet has no result to protect.
    if not any((run_dir / "checkpoints").glob("[0-9]*")):
        return
    changed = [
        change
        for change in changed_fields(before, json.loads(json.dumps(config.to_dict())))
        if not _is_same_model(run_dir, change.partition(":")[0], config)
    ]
    raise_problems(
        f"{run_dir} holds a run that these settings would change. Set them back, or choose another "
        "run_dir, or delete the folder",
        changed,
    )


def _is_same_model(run_dir: Path, field: str, config: RunConfig) -> bool:
    """Whether a folder that the settings name differently holds the model that the run knows."""
    names = {"init": "init_fingerprint", "inherit.teacher": "teacher_fingerprint"}
    folder = config.init if field == "init" else config.inherit.teacher
    if field not in names or not folder:
        return False
    try:
        lineage = json.loads((run_dir / "lineage.json").read_text(encoding="utf-8"))
        return init_fingerprint(folder) == lineage.get(names[field])
    except (OSError, ValueError):  # CheckpointError and ConvertError are ValueErrors
        return False


@dataclass(frozen=True)
class _Begun:
    """The newest checkpoint of a run."""

    step: int
    meta: dict[str, Any]


def _begun(run_dir: Path, config: RunConfig) -> _Begun | None:
    if not (run_dir / "checkpoints").is_dir():
        return None
    checkpoints = Checkpoints(run_dir, config.checkpoint)
    try:
        newest = checkpoints.newest()
        return None if newest is None else _Begun(*newest)
    finally:
        checkpoints.close()


def _check_grown(config: RunConfig, lineage: Mapping[str, Any]) -> None:
    """Make sure that what only a grown model can do is asked of one."""
    if lineage.get("growth_plan", {}).get("method") in ("fpi", "aki"):
        return
    wanted = [
        f"{name}: found {value!r}, which is for grown models; set init to one grown by fpi or aki"
        for name, value, plain in (
            ("optimizer.rate_scale", config.optimizer.rate_scale, "none"),
            ("optimizer.state", config.optimizer.state, "reset"),
            ("log.symmetry", config.log.symmetry, "off"),
        )
        if value != plain
    ]
    raise_problems("This run does not start from a grown model", wanted)


def _check_vocabulary(config: RunConfig, prepared: Prepared) -> None:
    if prepared.tokenizer.vocab_size > config.model.vocab_size:
        raise ConfigError(
            f"model.vocab_size: found {config.model.vocab_size}, but the tokenizer has "
            f"{prepared.tokenizer.vocab_size} tokens ({prepared.path}); set at least that many, "
            "or data.vocab_size lower"
        )
