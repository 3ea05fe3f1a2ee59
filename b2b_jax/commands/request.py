"""What `b2b grow` is asked for, and the plan that follows from it."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from b2b_jax.commands.folders import refuse_filled
from b2b_jax.config import load_target, raise_problems
from b2b_jax.convert.match import InitMissing
from b2b_jax.growth import (
    GrowthError,
    GrowthPlan,
    NormCalibration,
    mean_pad_epsilon,
    plan_growth,
)
from b2b_jax.growth.depth import Depth
from b2b_jax.growth.mappings import Mapping as WidthMapping
from b2b_jax.growth.mappings import Split
from b2b_jax.growth.plan import AkiScope, Method, NormRule
from b2b_jax.growth.planning import AxisRule
from b2b_jax.models import ModelConfig


@dataclass(frozen=True)
class GrowRequest:
    """What the user asks `b2b grow` for.

    Attributes:
        source: folder of the model to grow: a run, a grown folder or a Hugging Face folder.
        target: folder to write, of the same kind.
        to: preset, sizes or YAML file of the target; see `load_target`. Empty with a plan.
        plan: file of a plan to replay instead; "" to make one.
        method: how parameters are made.
        mapping: what new width entries copy.
        depth: what new layers copy.
        aki_scope: what AKI takes from the layer above.
        norm: how norms meet a width that is no multiple.
        text: file of plain text to calibrate norms on and to compare on; "" for what the source
            was evaluated on.
        split: how weights are parted among copies.
        noise: what is added to one copy and taken from the other.
        maps: axis name -> how it is mapped, where it should differ.
        seed: of random maps and fresh parameters.
        existing: what to do with a target that holds something else.
        heads: output heads wanted of a Hugging Face folder; None for those of its class.
        init_missing: whether heads that it lacks are made fresh.
        shard_bytes: largest size of one weight file of a Hugging Face folder.
    """

    source: str
    target: str
    to: str = ""
    plan: str = ""
    method: Method = "aki"
    mapping: WidthMapping = "cyclic"
    depth: Depth = "stack"
    aki_scope: AkiScope = "all"
    norm: NormRule = "plain"
    text: str = ""
    split: Split = "equal"
    noise: float = 0.0
    maps: Mapping[str, AxisRule] = field(default_factory=dict)
    seed: int = 0
    existing: Literal["refuse", "replace"] = "refuse"
    heads: tuple[str, ...] | None = None
    init_missing: InitMissing = "nothing"
    shard_bytes: int = 5 * 10**9

    def make_plan(
        self, source: ModelConfig, *, calibrate: Callable[[int], NormCalibration]
    ) -> GrowthPlan:
        """Plan the growth, or read the plan that is to be replayed.

        Args:
            source: config of the model to grow.
            calibrate: finds out how the norms of the model meet a width.

        Raises:
            GrowthError: if the target cannot be reached, or the file holds no plan.
            ConfigError: if the plan is for another source.
        """
        if self.plan:
            return self._read_plan(source)
        target = load_target(self.to, source)
        if self.norm == "mean_pad" and target.layer_norm_eps == source.layer_norm_eps:
            widths = source.hidden_size, max(target.hidden_size, source.hidden_size)
            epsilon = mean_pad_epsilon(source.layer_norm_eps, *widths)
            target = target.replace(layer_norm_eps=epsilon)
        make = functools.partial(
            plan_growth,
            source,
            target,
            method=self.method,
            mapping=self.mapping,
            depth=self.depth,
            aki_scope=self.aki_scope,
            split=self.split,
            noise=self.noise,
            maps=self.maps,
            seed=self.seed,
        )
        if self.norm != "calibrated":
            return make(norm=self.norm)
        make()  # what cannot be done is said before anything is calibrated
        if self.method not in ("fpi", "aki"):
            raise GrowthError(f"--norm calibrated: {self.method} copies nothing twice")
        if not (Path(self.target) / "growth_plan.json").exists():
            refuse_filled(Path(self.target), source=self.source, existing=self.existing)
        return make(norm=calibrate(target.hidden_size))

    def _read_plan(self, source: ModelConfig) -> GrowthPlan:
        default = GrowRequest(self.source, self.target)
        both = [
            name
            for name in (
                "method",
                "mapping",
                "depth",
                "aki_scope",
                "norm",
                "split",
                "noise",
                "maps",
            )
            if getattr(self, name) != getattr(default, name)
        ]
        if both:
            raise GrowthError(f"--plan says all about the growth; leave out --{', --'.join(both)}")
        try:
            text = Path(self.plan).read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise GrowthError(f"{self.plan}: this is not a growth plan: {error}") from error
        try:
            plan = GrowthPlan.from_json(text)
        except GrowthError as error:
            raise GrowthError(f"{self.plan}: {error}") from error
        grows, has = (
            cfg.invariants() | {f"size of {axis}": size for axis, size in cfg.axis_sizes().items()}
            for cfg in (ModelConfig.from_dict(plan.source), source)
        )
        raise_problems(
            f"{self.plan} grows another model than {self.source} holds",
            [
                f"{name}: the plan's source has {grows.get(name)!r}, the folder {has.get(name)!r}"
                + ("; --heads chooses them" if name == "heads" else "")
                for name in sorted(grows.keys() | has.keys())
                if grows.get(name) != has.get(name)
            ],
        )
        return plan
