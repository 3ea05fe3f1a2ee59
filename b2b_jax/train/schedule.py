"""What every step of a run trains: phases of whole-model, sub-model and progressive training."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

from b2b_jax.train.stages import (
    SubModel,
    TiedTablePolicy,
    TwoStageConfig,
    draw,
    full_model,
    sub_models,
)

ProgressiveMethod = Literal["none", "stack", "interpolate", "mslt"]
FreshMoments = Literal["none", "copied layers", "all"]


@dataclass(frozen=True)
class ProgressiveConfig:
    """Depth that grows during the run: the StackBERT and MSLT baselines of bert2BERT."""

    method: ProgressiveMethod = "none"
    """"stack" doubles the layers between stages by a copy on top (StackBERT, Gong et al., 2019),
    "interpolate" by a copy next to every layer; "mslt" adds a copy of the top layers and trains
    these alone (Yang et al., 2020)."""
    stage_steps: tuple[int, ...] = ()
    """Steps of every stage but the last, which trains the whole model. n stages of "stack" begin
    with 1 / 2^n of the layers; n stages of "mslt" add 1 / n of them each."""
    tied_table: TiedTablePolicy = "head"
    """Whether the tied token table is trained as part of the head while "mslt" has the lower layers
    frozen, or frozen with the embeddings."""

    def problems(self, num_layers: int, total_steps: int) -> list[str]:
        """Every reason why this cannot run on a model of ``num_layers`` for ``total_steps``."""
        stages = len(self.stage_steps)
        if self.method == "none":
            unused = "progressive.stage_steps: found stages, but progressive.method is 'none'"
            return [unused] if stages else []
        found = []
        if not stages or min(self.stage_steps) < 1 or sum(self.stage_steps) >= total_steps:
            found.append(
                f"progressive.stage_steps: found {list(self.stage_steps)}, expected the steps of "
                f"every stage but the last, each at least 1, together less than {total_steps}"
            )
        parts = max(stages, 1) if self.method == "mslt" else 2**stages
        if num_layers % parts:
            found.append(
                f"progressive.stage_steps: found {stages} stages, so the layers are parted in "
                f"{parts}; model.num_hidden_layers ({num_layers}) is no multiple of that"
            )
        return found


@dataclass(frozen=True)
class Phase:
    """Consecutive steps of one kind.

    Attributes:
        name: "full", "sub" (bert2BERT, stage one), "teacher" (knowledge inheritance), or the
            progressive method with its layers.
        start: its first step.
        stop: the first step after it.
        subs: what its steps train; where there are several, one is drawn for every step.
        layer_order: which layer of the model before the phase every layer begins as; empty where
            nothing changes.
        fresh_moments: whose optimizer moments begin at zero.
    """

    name: str
    start: int
    stop: int
    subs: tuple[SubModel, ...]
    layer_order: tuple[int, ...] = ()
    fresh_moments: FreshMoments = "none"

    @property
    def steps(self) -> int:
        """Number of steps."""
        return self.stop - self.start

    @property
    def layers(self) -> int:
        """Layers of the model that the phase trains, also where a step trains only some."""
        return max(sub.depth for sub in self.subs)

    @property
    def needs_teacher(self) -> bool:
        """Whether its steps learn from a teacher as well."""
        return self.name == "teacher"


@dataclass(frozen=True)
class Schedule:
    """What every step of a run trains.

    Attributes:
        num_layers: layers of the whole model.
        total_steps: length of the run.
        two_stage: sub-models before the whole model (bert2BERT, Algorithm 2).
        progressive: depth that grows during the run.
        teacher_steps: steps at the start that learn from a teacher as well.
        seed: of the draws of sub-models.
    """

    num_layers: int
    total_steps: int
    two_stage: TwoStageConfig = field(default_factory=TwoStageConfig)
    progressive: ProgressiveConfig = field(default_factory=ProgressiveConfig)
    teacher_steps: int = 0
    seed: int = 0

    @property
    def full(self) -> SubModel:
        """The whole model."""
        return full_model(self.num_layers)

    @cached_property
    def phases(self) -> tuple[Phase, ...]:
        """The phases in order; the last trains the whole model, and may have no steps."""
        first: Sequence[Phase] = ()
        order: tuple[int, ...] = ()
        if self.two_stage.steps:
            subs = sub_models(self.num_layers, self.two_stage)
            first = [Phase("sub", 0, self.two_stage.steps, subs)]
        elif self.teacher_steps:
            first = [Phase("teacher", 0, self.teacher_steps, (self.full,))]
        elif self.progressive.method == "mslt":
            first = _mslt_phases(self.num_layers, self.progressive)
        elif self.progressive.method != "none":
            first = _doubling_phases(self.num_layers, self.progressive)
            order = _doubled(self.num_layers, self.num_layers, self.progressive.method)
        start = first[-1].stop if first else 0
        whole = Phase(
            "full",
            start,
            self.total_steps,
            (self.full,),
            layer_order=order,
            fresh_moments="all" if order else "none",
        )
        return (*first, whole)

    @property
    def drawn_depths(self) -> tuple[int, ...]:
        """Depths of the sub-models of stage one, shallowest first; none without such a stage."""
        first = self.phases[0]
        return tuple(sub.depth for sub in first.subs) if first.name == "sub" else ()

    def phase(self, step: int) -> Phase:
        """The phase that a step belongs to."""
        return next((phase for phase in self.phases if step < phase.stop), self.phases[-1])

    def sub_model(self, step: int) -> SubModel:
        """What a step trains."""
        subs = self.phase(step).subs
        return subs[0] if len(subs) == 1 else subs[draw(self.seed, step, len(subs))]


def _doubling_phases(num_layers: int, config: ProgressiveConfig) -> list[Phase]:
    """The stages before the whole model, each with twice the layers of the one before."""
    stages, start, phases = len(config.stage_steps), 0, []
    for stage, steps in enumerate(config.stage_steps):
        depth = num_layers // 2 ** (stages - stage)
        phases.append(
            Phase(
                f"{config.method} {depth}",
                start,
                start + steps,
                (SubModel(depth, 0, "trained", "trained"),),
                layer_order=_doubled(depth, num_layers, config.method) if stage else (),
                fresh_moments="all" if stage else "none",
            )
        )
        start += steps
    return phases


def _doubled(depth: int, num_layers: int, method: ProgressiveMethod) -> tuple[int, ...]:
    """The bottom ``depth`` layers from half as many; those above as they are."""
    half = depth // 2
    bottom = (layer % half if method == "stack" else layer // 2 for layer in range(depth))
    return (*bottom, *range(depth, num_layers))


def _mslt_phases(num_layers: int, config: ProgressiveConfig) -> list[Phase]:
    """Stages that each add a copy of the top layers and train it, with everything below frozen."""
    block, start, phases = num_layers // len(config.stage_steps), 0, []
    table = "trained" if config.tied_table == "head" else "frozen"
    for stage, steps in enumerate(config.stage_steps):
        depth, order = block * (stage + 1), list(range(num_layers))
        order[depth - block : depth] = order[depth - 2 * block : depth - block]
        sub = (
            SubModel(depth, depth - block, "frozen", table)
            if stage
            else SubModel(depth, 0, "trained", "trained")
        )
        phases.append(
            Phase(
                f"mslt {depth}",
                start,
                start + steps,
                (sub,),
                layer_order=tuple(order) if stage else (),
                fresh_moments="copied layers" if stage else "none",
            )
        )
        start += steps
    return phases
