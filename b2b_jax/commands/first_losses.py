"""Held-out loss right after growth, without training: the paper's Table 1 (effects)."""

import csv
import io
import statistics
from pathlib import Path

import jax

from b2b_jax.commands.folders import write_text
from b2b_jax.compare import Plan
from b2b_jax.data import prepare
from b2b_jax.growth import grow, plan_growth
from b2b_jax.growth.fresh import fresh_params
from b2b_jax.models import ModelConfig, build_model
from b2b_jax.train.config import RunConfig
from b2b_jax.train.heldout import heldout_columns
from b2b_jax.train.programs import Programs
from b2b_jax.train.saved import in_float32, load_model
from b2b_jax.train.writers import Reporter
from b2b_jax.types import Params

GROWTHS = (("rand", "random"), ("DirectCopy", "direct_copy"), ("FPI", "fpi"), ("AKI", "aki"))


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
    found: dict[tuple[str, str], dict[str, list[float]]] = {}
    run = plan.config.entries[0].run
    prepared = prepare(run.data)

    def loss(config: ModelConfig, params: Params) -> float:
        plain = RunConfig(run_dir="-", model=config, data=run.data, train=run.train, mesh=run.mesh)
        programs = Programs(plain, prepared.tokenizer)
        whole = plain.schedule.phases[-1]
        return heldout_columns(programs, prepared, params, phase=whole)["heldout_loss"]

    for seed in plan.config.seeds:
        for spec in plan.config.sources:
            saved = load_model(plan.source_folder(spec, seed))
            params = in_float32(saved.params)
            original = loss(saved.config, params)
            for target in plan.config.first_losses:
                sizes = (
                    f"{spec.name} ({saved.config.num_hidden_layers}, {saved.config.hidden_size})"
                )
                wanted = f"({target.num_hidden_layers}, {target.hidden_size})"
                line = found.setdefault((sizes, wanted), {})
                line.setdefault("original", []).append(original)
                for label, method in GROWTHS:
                    grown = (
                        _random(target, seed=seed)
                        if method == "random"
                        else _grown(saved.config, params, target, method=method, seed=seed)
                    )
                    line.setdefault(label, []).append(loss(target, grown))
            jax.clear_caches()
    for name, text in (("md", _markdown(found)), ("csv", _csv(found))):
        write_text(Path(plan.root) / f"first_losses.{name}", text)
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


Found = dict[tuple[str, str], dict[str, list[float]]]


def _markdown(found: Found) -> str:
    """One line per growth; mean and standard deviation over seeds."""
    names = ["original", *(label for label, _ in GROWTHS)]
    lines = [["source", "target", *names], ["---"] * 2 + ["---:"] * len(names)]
    for (source, target), losses in found.items():
        lines.append([source, target, *(_mean(losses[name]) for name in names)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def _mean(values: list[float]) -> str:
    mean = f"{statistics.mean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ± {statistics.stdev(values):.3f}"


def _csv(found: Found) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(["source", "target", "method", "run", "heldout_loss"])
    for (source, target), losses in found.items():
        for name, values in losses.items():
            for index, value in enumerate(values):
                writer.writerow([source, target, name, index, value])
    return out.getvalue()
