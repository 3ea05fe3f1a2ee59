"""What a run says about itself: on the terminal when it begins, and in its README.md."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax

from b2b_jax.models import Model
from b2b_jax.train.config import RunConfig
from b2b_jax.train.loop import Trainer
from b2b_jax.train.meter import Accounting
from b2b_jax.train.schedule import Phase
from b2b_jax.train.stages import full_model
from b2b_jax.train.writers import Reporter


def describe_run(
    config: RunConfig, trainer: Trainer, *, accounting: Accounting, reporter: Reporter
) -> None:
    """Say what is about to run: sizes, length, devices, phases."""
    model, train = config.model, config.train
    parameters = sum(math.prod(shape) for shape in trainer.programs.model.shapes.values())
    step = accounting.step_cost(full_model(model.num_hidden_layers))
    mesh = ", ".join(f"{name} {size}" for name, size in trainer.programs.mesh.shape.items())
    reporter.note(
        f"model: {model.family}, {model.num_hidden_layers} layers, {model.hidden_size} wide, "
        f"{parameters / 1e6:.2f} M parameters"
    )
    reporter.note(
        f"run: {train.steps} steps of {train.batch_size} x {train.sequence_length} tokens, "
        f"{step.exact / 1e9:.1f} GFLOP per full step; "
        f"{jax.device_count()} x {jax.devices()[0].device_kind} ({mesh}); writes {config.run_dir}/"
    )
    if trainer.programs.model.compute.attention != "xla":
        reporter.note(attention_words(trainer.programs.model))
    phases = [phase for phase in config.schedule.phases if phase.steps]
    if len(phases) > 1:
        reporter.note("stages: " + ", then ".join(map(_phase_words, phases)))


def attention_words(model: Model) -> str:
    """Which kernel computes attention, and why it is not a faster one."""
    kernel, dropout = model.compute.attention, model.cfg.attention_probs_dropout_prob
    if kernel == "xla" or not dropout:
        return f"attention: {kernel}"
    return (
        f"attention: xla while training, since {kernel} has no dropout of probabilities "
        f"(model.attention_probs_dropout_prob is {dropout:g})"
    )


def _phase_words(phase: Phase) -> str:
    if phase.name == "sub":
        depths = ", ".join(str(sub.depth) for sub in phase.subs)
        return f"{phase.steps} steps of sub-models ({depths} layers)"
    if phase.needs_teacher:
        return f"{phase.steps} of the whole model beside a teacher"
    if phase.name == "full":
        return f"{phase.steps} of the whole model"
    (sub,) = phase.subs
    trained = "all" if sub.live_layers == sub.depth else f"the top {sub.live_layers}"
    return f"{phase.steps} of {sub.depth} layers, {trained} trained"


def run_card(config: RunConfig, lineage: Mapping[str, Any]) -> str:
    """The README.md of a run folder: what it is, from what, how."""
    model = config.model
    origin = "random initialisation"
    if config.init:
        origin = f"`{config.init}`"
        if lineage.get("source"):
            method = lineage.get("method", "growth")
            origin += f", which was grown from `{lineage['source']}` by {method}"
    phases = [phase for phase in config.schedule.phases if phase.steps]
    stages = "the whole model throughout"
    if len(phases) > 1:
        stages = ", then ".join(map(_phase_words, phases))
    if config.inherit.steps:
        stages += f" (`{config.inherit.teacher}`)"
    return (
        f"# {Path(config.run_dir).name}\n\n"
        f"A {model.family} model of {model.num_hidden_layers} layers and width "
        f"{model.hidden_size}, pre-trained with b2b_jax {lineage['library_version']}.\n\n"
        f"- Starts from: {origin}\n"
        f"- Data: {config.data.source}\n"
        f"- Training: {config.train.steps} steps of {config.train.batch_size} sequences of "
        f"{config.train.sequence_length} tokens; {stages}\n"
        "- Files: `config.yaml` (every setting), `metrics.csv` and `tensorboard/` (curves), "
        "`checkpoints/` (Orbax)\n"
    )
