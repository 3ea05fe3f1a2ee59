"""`b2b compare --dry-run`: build, shard, compile and price every run; train nothing (effects)."""

import math
import sys
from dataclasses import dataclass

import jax
from rich.console import Console
from rich.table import Table

from b2b_jax.commands.abstract import stand_in_tokenizer, without_growth
from b2b_jax.commands.compiled_step import compile_step, wanted_steps
from b2b_jax.commands.train import planned_cost
from b2b_jax.compare import CompareConfig
from b2b_jax.models import ModelConfig, build_model
from b2b_jax.report.chips import chip_of_kind
from b2b_jax.train.config import RunConfig
from b2b_jax.train.programs import Programs
from b2b_jax.train.stages import SubModel
from b2b_jax.train.writers import Reporter


@dataclass(frozen=True)
class _DryRun:
    """One run that could be.

    Attributes:
        name: what it is.
        run: its settings.
        teacher: the model that it learns from.
    """

    name: str
    run: RunConfig
    teacher: ModelConfig | None


def compare_dry_run(config: CompareConfig, *, reporter: Reporter) -> None:
    """Compile every distinct training step of a comparison and print what each run costs.

    Args:
        config: the comparison; nothing of it needs to exist.
        reporter: where progress goes.

    Raises:
        ConfigError: if the compiler fails for another reason than memory.
        ShardingError: if a batch or a parameter cannot be split over the devices.
    """
    runs = [
        _DryRun(f"source {spec.name}", spec.run, None) for spec in config.sources if not spec.folder
    ]
    for entry in config.entries:
        runs.append(_DryRun(entry.method.label, entry.run, config.teacher(entry)))
    chip = chip_of_kind(jax.devices()[0].device_kind)
    compiled: set[tuple[ModelConfig, SubModel, ModelConfig | None]] = set()
    for dry in runs:
        teacher = None
        if dry.teacher is not None:
            teacher = build_model(dry.teacher, compute=dry.run.compute)
        tokenizer = stand_in_tokenizer(dry.run.model)
        programs = Programs(without_growth(dry.run), tokenizer, teacher=teacher)
        for wanted in wanted_steps(dry.run):
            taught_by = dry.teacher if wanted.phase.needs_teacher else None
            if (dry.run.model, wanted.sub, taught_by) in compiled:
                continue
            compiled.add((dry.run.model, wanted.sub, taught_by))
            step = compile_step(programs, wanted, chip=chip)
            problem = f"; {step.problem}" if step.problem else ""
            reporter.note(f"{dry.name}: compiled {step.name} in {step.seconds:.1f} s{problem}")
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 140)
    console.print(_table(runs, config))


def _table(runs: list[_DryRun], config: CompareConfig) -> Table:
    """Steps and FLOPs of every run, and what it saves if it needs all of them."""
    scratch = next((dry for dry in runs if dry.name == "scratch"), None)
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    table = Table(title=f"{config.title}: every run compiles and shards on {devices}")
    headings = (
        "run",
        "parameters",
        "steps",
        "FLOPs (ELECTRA)",
        "FLOPs (exact)",
        "saving if all steps are needed",
    )
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right")
    whole = planned_cost(scratch.run) if scratch else None
    for dry in runs:
        cost = planned_cost(dry.run, teacher=dry.teacher)
        parameters = sum(map(math.prod, build_model(dry.run.model).shapes.values()))
        saving = "-"
        if whole and dry.run.model == config.target:
            saving = f"{100 * (1 - cost.electra / whole.electra):.1f} %"
        table.add_row(
            dry.name,
            f"{parameters / 1e6:.1f} M",
            f"{dry.run.train.steps:,}",
            f"{cost.electra:.3g}",
            f"{cost.exact:.3g}",
            saving,
        )
    return table
