"""A tiny run on real files, for the tests of the loop."""

import os
import random
import signal
from pathlib import Path

from b2b_jax.data import DataConfig
from b2b_jax.models import preset
from b2b_jax.train.config import CheckpointConfig, LogConfig, RunConfig, TrainConfig
from b2b_jax.train.optim import OptimizerConfig
from b2b_jax.train.stages import TwoStageConfig

STEPS, STAGE_ONE = 12, 6


def write_text(path: Path) -> Path:
    """Sentences of a small grammar, every document another one."""
    rng = random.Random(0)
    nouns = "layer model weight token head neuron gradient batch corpus mask".split()
    verbs = "copies grows reads predicts scales averages stores updates".split()
    documents = []
    for _ in range(240):
        sentences = (
            f"the {rng.choice(nouns)} {rng.choice(verbs)} the {rng.choice(nouns)} and the "
            f"{rng.choice(nouns)} {rng.choice(verbs)} number {rng.randrange(9999)} ."
            for _ in range(rng.randint(3, 8))
        )
        documents.append(" ".join(sentences))
    path.write_text("\n\n".join(documents))
    return path


def tiny_run(folder: Path, name: str = "run", **changes) -> RunConfig:
    """A two-stage run of twelve steps."""
    text = folder / "text.txt"
    if not text.exists():
        write_text(text)
    fields = {
        "run_dir": str(folder / name),
        "model": preset("bert-tiny").replace(
            vocab_size=300,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=16,
        ),
        "data": DataConfig(
            source="files",
            paths=(str(text),),
            vocab_size=300,
            heldout_percent=20.0,
            prepared_dir=str(folder / "data"),
        ),
        "train": TrainConfig(
            steps=STEPS,
            batch_size=4,
            sequence_length=16,
            masked_positions=3,
            eval_every=4,
            eval_batches=2,
        ),
        "optimizer": OptimizerConfig(peak_learning_rate=1e-2, warmup_steps=2),
        "two_stage": TwoStageConfig(steps=STAGE_ONE, layers_per_block=1),
        "checkpoint": CheckpointConfig(every_steps=5, every_minutes=0.0, keep_last=2, keep_best=0),
        "log": LogConfig(every_steps=2, tensorboard="off"),
    }
    return RunConfig(**(fields | changes))


class Recorder:
    """A reporter that keeps what it is told and may send the process a signal at a step."""

    def __init__(self, *, signal_at: int | None = None, number: int = signal.SIGTERM) -> None:
        self.notes: list[str] = []
        self.signal_at, self.number = signal_at, number

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, done: int, total: int, *, text: str, seconds_left: float | None) -> None:
        del total, text, seconds_left
        if done == self.signal_at:
            self.signal_at = None
            os.kill(os.getpid(), self.number)

    def close(self) -> None:
        pass

    @property
    def text(self) -> str:
        return "\n".join(self.notes)
