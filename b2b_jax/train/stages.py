"""Two-stage pre-training (bert2BERT, Algorithm 2): which layers a step runs and which it trains."""

from dataclasses import dataclass
from typing import Literal

import numpy as np

EmbeddingPolicy = Literal["first", "never", "always"]
TiedTablePolicy = Literal["head", "embeddings"]
Trained = Literal["trained", "frozen"]


@dataclass(frozen=True)
class SubModel:
    """One training step's share of the model: the bottom ``depth`` layers, trained from the top.

    Attributes:
        depth: number of layers run, counted from the bottom.
        first_live: index of the lowest trained layer; layers ``[first_live, depth)`` are trained.
        embeddings: whether the embedding tables and their norm are trained.
        output_table: whether the tied token table is trained through the output projection.
    """

    depth: int
    first_live: int
    embeddings: Trained
    output_table: Trained

    @property
    def live_layers(self) -> int:
        """Number of trained layers."""
        return self.depth - self.first_live


@dataclass(frozen=True)
class TwoStageConfig:
    """Sub-model training before full training; switched off by ``steps=0``."""

    steps: int = 0
    """Steps of sub-model training at the start of the run (the paper's E_b, in steps)."""
    layers_per_block: int = 3
    """Trained layers of each sub-model (the paper's l_b); must divide the number of layers."""
    embeddings: EmbeddingPolicy = "first"
    """When the embeddings are trained: with the shallowest sub-model, never, or always."""
    tied_table: TiedTablePolicy = "head"
    """Whether the tied token table counts as part of the head (trained in every step, through the
    output projection alone unless the embeddings are live) or of the embeddings."""

    def problems(self, num_layers: int, total_steps: int) -> list[str]:
        """Every reason why this cannot run on a model of ``num_layers`` for ``total_steps``."""
        found = []
        if not 0 <= self.steps <= total_steps:
            found.append(
                f"two_stage.steps: found {self.steps}, expected 0 to train.steps ({total_steps})"
            )
        if self.steps and (self.layers_per_block < 1 or num_layers % self.layers_per_block):
            divisors = [n for n in range(1, num_layers + 1) if num_layers % n == 0]
            found.append(
                f"two_stage.layers_per_block: found {self.layers_per_block}, expected a divisor of "
                f"model.num_hidden_layers ({num_layers}): one of {divisors}"
            )
        return found


def full_model(num_layers: int) -> SubModel:
    """The step that runs and trains everything."""
    return SubModel(num_layers, 0, "trained", "trained")


def sub_models(num_layers: int, config: TwoStageConfig) -> tuple[SubModel, ...]:
    """The sub-models {l_b, 2 l_b, ..., L} of bert2BERT's Algorithm 2, shallowest first.

    Example:
        >>> [s.depth for s in sub_models(12, TwoStageConfig(steps=1, layers_per_block=3))]
        [3, 6, 9, 12]
    """
    block = config.layers_per_block

    def sub_model(depth: int) -> SubModel:
        lowest = depth == block
        embeddings = config.embeddings == "always" or (config.embeddings == "first" and lowest)
        table = embeddings or config.tied_table == "head"
        return SubModel(
            depth=depth,
            first_live=depth - block,
            embeddings="trained" if embeddings else "frozen",
            output_table="trained" if table else "frozen",
        )

    return tuple(sub_model(depth) for depth in range(block, num_layers + 1, block))


def draw(seed: int, step: int, choices: int) -> int:
    """Draw the sub-model of a step, uniformly, from nothing but the seed and the step.

    Every host and every resumed run therefore draws the same. Runs on the host: the draw picks
    which compiled program to launch.

    Returns:
        an index in ``[0, choices)``.

    Example:
        >>> draw(0, 7, 4) == draw(0, 7, 4)
        True
    """
    return int(np.random.default_rng((seed, step, 0x62326)).integers(choices))
