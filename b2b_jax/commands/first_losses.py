"""Held-out loss right after growth, without training: the paper's Table 1 (effects)."""

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import jax

from b2b_jax.commands.folders import write_text
from b2b_jax.compare import Plan
from b2b_jax.data import prepare
from b2b_jax.growth import grow, plan_growth
from b2b_jax.growth.fresh import fresh_params
from b2b_jax.models import ModelConfig, build_model
from b2b_jax.report.study_rows import spread
from b2b_jax.report.study_table import mean_and_deviation
from b2b_jax.report.tables import render_csv, render_markdown
from b2b_jax.train.config import RunConfig
from b2b_jax.train.heldout import heldout_columns
from b2b_jax.train.programs import Programs
from b2b_jax.train.saved import in_float32, load_model
from b2b_jax.train.writers import Reporter
from b2b_jax.types import Params

GROWTHS = (("rand", "random"), ("DirectCopy", "direct_copy"), ("FPI", "fpi"), ("AKI", "aki"))


@dataclass(frozen=True)
class FirstLoss:
    """What one growth starts at.

    Attributes:
        source: name, layers and width of the small model.
        target: layers and width of the large one.
        method: how it grew; "original" for the source itself.
        seed: of source and growth.
        heldout_loss: without any training.
    """

    source: str
    target: str
    method: str
    seed: int
    heldout_loss: float


def remove_first_losses(root: Path) -> None:
    """Take away what an earlier sitting found, which may have been of other models."""
    for suffix in ("md", "csv"):
        (root / f"first_losses.{suffix}").unlink(missing_ok=True)


def write_first_losses(plan: Plan, *, reporter: Reporter) -> None:
    """Grow every source to every size that is asked for, evaluate, and write first_losses.md, .csv.

    Args:
        plan: of a comparison whose sources are trained.
        reporter: where notes go.
    """
    found: list[FirstLoss] = []
    run = plan.config.entries[0].run
    prepared = prepare(run.data)

    @functools.cache
    def programs_of(config: ModelConfig) -> Programs:
        plain = RunConfig(run_dir="-", model=config, data=run.data, train=run.train, mesh=run.mesh)
        return Programs(plain, prepared.tokenizer)

    def loss(config: ModelConfig, params: Params) -> float:
        programs = programs_of(config)
        whole = programs.config.schedule.phases[-1]
        placed = programs.put_params(params)
        return heldout_columns(programs, prepared, placed, phase=whole)["heldout_loss"]

    for seed in plan.config.seeds:
        for spec in plan.config.sources:
            saved = load_model(plan.source_folder(spec, seed))
            params = in_float32(saved.params)
            original = loss(saved.config, params)
            for target in plan.config.first_losses:
                sizes = (f"{spec.name} {_size(saved.config)}", _size(target))
                found.append(FirstLoss(*sizes, "original", seed, original))
                for label, method in GROWTHS:
                    grown = (
                        _random(target, seed=seed)
                        if method == "random"
                        else _grown(saved.config, params, target, method=method, seed=seed)
                    )
                    found.append(FirstLoss(*sizes, label, seed, loss(target, grown)))
    rows = [dataclasses.astuple(one) for one in found]
    names = [field.name for field in dataclasses.fields(FirstLoss)]
    write_text(Path(plan.root) / "first_losses.csv", render_csv(names, rows))
    write_text(Path(plan.root) / "first_losses.md", _markdown(found))
    reporter.note(f"{plan.root}/first_losses.md: held-out loss right after growth")


def _size(config: ModelConfig) -> str:
    """As the paper writes it: layers and width."""
    return f"({config.num_hidden_layers}, {config.hidden_size})"


def _random(target: ModelConfig, *, seed: int) -> Params:
    model = build_model(target)
    return fresh_params(model.axes, model.shapes, seed=seed)


def _grown(
    source: ModelConfig, params: Params, target: ModelConfig, *, method: str, seed: int
) -> Params:
    steps = plan_growth(source, target, method=method, seed=seed)  # pyright: ignore
    return jax.jit(grow, static_argnums=1)(params, steps)


def _markdown(found: Sequence[FirstLoss]) -> str:
    """One line per growth; mean and standard deviation over seeds."""
    names = ["original", *(label for label, _ in GROWTHS)]
    lines = []
    for source, target in dict.fromkeys((one.source, one.target) for one in found):
        cells = [f"{source} to {target}"]
        for name in names:
            wanted = (source, target, name)
            losses = [
                one.heldout_loss for one in found if (one.source, one.target, one.method) == wanted
            ]
            cells.append(mean_and_deviation(spread(losses)))
        lines.append(cells)
    return render_markdown(["growth", *names], lines)
