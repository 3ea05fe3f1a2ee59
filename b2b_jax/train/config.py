"""The schema of a training run: frozen dataclasses, one per concern."""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from b2b_jax.data import DataConfig
from b2b_jax.models import Compute, ModelConfig, attention_problems
from b2b_jax.train.inherit import InheritConfig
from b2b_jax.train.optim import OptimizerConfig
from b2b_jax.train.schedule import ProgressiveConfig, Schedule
from b2b_jax.train.sharding import MeshConfig
from b2b_jax.train.stages import TwoStageConfig


@dataclass(frozen=True)
class TrainConfig:
    """Length, batch and seed of a run."""

    steps: int = 100_000
    """Updates in all, both stages together."""
    batch_size: int = 64
    """Sequences per update, over all devices and micro-batches."""
    sequence_length: int = 128
    """Tokens per sequence, special tokens included."""
    masked_positions: int = 20
    """Masked tokens per sequence (BERT only)."""
    micro_batches: int = 1
    """Parts of the batch whose gradients are accumulated one after the other."""
    seed: int = 0
    """Of initial parameters, data order, masks, dropout and sub-model draws."""
    eval_every: int = 1000
    """Steps between two evaluations on held-out text."""
    eval_batches: int = 8
    """Held-out batches per evaluation."""


@dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which are kept; changes no result."""

    every_steps: int = 1000
    """Steps between two checkpoints; 0 switches this off."""
    every_minutes: float = 10.0
    """Minutes between two checkpoints; 0 switches this off."""
    keep_last: int = 2
    """Newest checkpoints to keep."""
    keep_best: int = 1
    """Checkpoints of lowest held-out loss to keep besides."""


@dataclass(frozen=True)
class LogConfig:
    """What is written while training; changes no result."""

    every_steps: int = 10
    """Steps between two rows of metrics.csv."""
    tensorboard: Literal["on", "off"] = "on"
    """Whether TensorBoard events are written next to metrics.csv."""
    symmetry: Literal["on", "off"] = "off"
    """Whether evaluations of a grown model tell how far its copies have parted, axis by axis."""


@dataclass(frozen=True)
class RunConfig:
    """Everything about one training run."""

    run_dir: str = ""
    """Folder of the run: configuration, metrics and checkpoints."""
    init: str = ""
    """Folder of a grown or trained model to start from; empty starts from random parameters."""
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    two_stage: TwoStageConfig = field(default_factory=TwoStageConfig)
    progressive: ProgressiveConfig = field(default_factory=ProgressiveConfig)
    inherit: InheritConfig = field(default_factory=InheritConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    compute: Compute = field(default_factory=Compute)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)

    def to_dict(self) -> dict[str, Any]:
        """The run as nested plain values, as config.yaml holds it."""

        def plain(value: Any) -> Any:
            if isinstance(value, dict):
                return {key: plain(entry) for key, entry in value.items()}
            return list(value) if isinstance(value, tuple) else value

        return plain(dataclasses.asdict(self))

    @property
    def schedule(self) -> Schedule:
        """What every step trains."""
        return Schedule(
            self.model.num_hidden_layers,
            self.train.steps,
            two_stage=self.two_stage,
            progressive=self.progressive,
            teacher_steps=self.inherit.steps,
            seed=self.train.seed,
        )

    def problems(self) -> list[str]:
        """Every reason why this run cannot start: field, value found, values expected."""
        train, model = self.train, self.model
        found = [] if self.run_dir else ["run_dir: found nothing, expected a folder to write to"]
        found += [f"model.{problem}" for problem in model.problems()]
        found += self.data.problems()
        found += self.mesh.problems()
        bounds = {
            "train.steps": (train.steps, 1, None),
            "train.batch_size": (train.batch_size, 1, None),
            "train.sequence_length": (
                train.sequence_length,
                4,
                model.max_position_embeddings - model.position_offset,
            ),
            "train.micro_batches": (train.micro_batches, 1, train.batch_size),
            "train.eval_every": (train.eval_every, 1, None),
            "train.eval_batches": (train.eval_batches, 1, None),
            "train.seed": (train.seed, 0, 2**31 - 1),
            "compute.scan_unroll": (self.compute.scan_unroll, 1, None),
            "checkpoint.every_steps": (self.checkpoint.every_steps, 0, None),
            "checkpoint.every_minutes": (self.checkpoint.every_minutes, 0, None),
            "checkpoint.keep_last": (self.checkpoint.keep_last, 1, None),
            "checkpoint.keep_best": (self.checkpoint.keep_best, 0, None),
            "log.every_steps": (self.log.every_steps, 1, None),
        }
        if not model.is_causal:
            # [CLS] and [SEP] are never masked.
            bounds["train.masked_positions"] = (
                train.masked_positions,
                1,
                max(train.sequence_length - 2, 1),
            )
        for name, (value, low, high) in bounds.items():
            if value < low or (high is not None and value > high):
                valid = f"at least {low}" if high is None else f"{low} to {high}"
                found.append(f"{name}: found {value}, expected {valid}")
        if train.micro_batches >= 1 and train.batch_size % train.micro_batches:
            found.append(
                f"train.micro_batches: found {train.micro_batches}, expected a divisor of "
                f"train.batch_size ({train.batch_size})"
            )
        if self.compute.attention != "auto" and model.attention_probs_dropout_prob:
            found.append(
                f"compute.attention: found {self.compute.attention!r}, which has no dropout of "
                "probabilities; set model.attention_probs_dropout_prob to 0, or leave it 'auto'"
            )
        if not model.problems():
            compute, tokens = self.compute, train.sequence_length
            found += attention_problems(
                compute.attention, model, dtype=compute.dtype, tokens=tokens
            )
        head = "lm" if model.is_causal else "mlm"
        if head not in model.heads:
            found.append(f"model.heads: found {list(model.heads)}, expected {head!r} among them")
        found += self.optimizer.problems(train.steps)
        found += self.two_stage.problems(model.num_hidden_layers, train.steps)
        found += self.progressive.problems(model.num_hidden_layers, train.steps)
        found += self.inherit.problems(train.steps, model.vocab_size)
        ways = {
            "two_stage.steps": self.two_stage.steps > 0,
            "progressive.method": self.progressive.method != "none",
            "inherit.steps": self.inherit.steps > 0,
        }
        if sum(ways.values()) > 1:
            chosen = " and ".join(name for name, is_on in ways.items() if is_on)
            found.append(f"{chosen}: found together, expected at most one of them in a run")
        return found


# Fields that decide where, when and how fast, but not what comes out.
FREE_FIELDS = (
    "run_dir",
    "mesh.",
    "checkpoint.",
    "log.",
    "compute.remat",
    "compute.scan_unroll",
    "data.prepared_dir",
    "inherit.cache_dir",
)


def flat_fields(run: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The settings of a run by dotted name.

    Args:
        run: `RunConfig.to_dict`.
        prefix: of the names.

    Example:
        >>> flat_fields({"init": "", "train": {"steps": 9}})
        {'init': '', 'train.steps': 9}
    """
    fields: dict[str, Any] = {}
    for key, value in run.items():
        nested = isinstance(value, dict)
        fields |= flat_fields(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return fields


def result_fields(run: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a run that decide what comes out, by dotted name.

    Args:
        run: `RunConfig.to_dict`, of this or of an older version, which lacks fields that were added
            since, at what is their default.
    """
    found = flat_fields(RunConfig().to_dict()) | flat_fields(run)
    return {name: value for name, value in found.items() if not name.startswith(FREE_FIELDS)}


def changed_fields(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Fields in which two runs differ so that they give other results: ``name: old -> new``.

    Args:
        before: `RunConfig.to_dict` of the run that exists.
        after: the same of the run that is asked for.
    """
    old, new = result_fields(before), result_fields(after)
    return [
        f"{name}: {old.get(name)!r} -> {new.get(name)!r}"
        for name in sorted(old.keys() | new.keys())
        if old.get(name) != new.get(name)
    ]
