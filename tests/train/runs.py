"""A tiny run on real files, for the tests of the loop."""

import csv
import json
import os
import random
import signal
from pathlib import Path

import jax
import numpy as np

from b2b_jax.data import DataConfig, prepare
from b2b_jax.growth import GrowthPlan
from b2b_jax.models import preset
from b2b_jax.train.checkpoint import Checkpoints
from b2b_jax.train.config import CheckpointConfig, LogConfig, RunConfig, TrainConfig
from b2b_jax.train.optim import OptimizerConfig
from b2b_jax.train.programs import Programs
from b2b_jax.train.stages import TwoStageConfig

STEPS, STAGE_ONE = 12, 6
TRAIN = TrainConfig(
    steps=STEPS,
    batch_size=4,
    sequence_length=16,
    masked_positions=3,
    eval_every=4,
    eval_batches=2,
)
TIMED = ("seconds", "tokens_per_second", "data_wait", "mfu")


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
        "train": TRAIN,
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
        self.lines: list[str] = []
        self.signal_at, self.number = signal_at, number

    def note(self, text: str) -> None:
        self.notes.append(text)

    def update(self, done: int, total: int, *, text: str, seconds_left: float | None) -> None:
        del total, seconds_left
        self.lines.append(text)
        if done == self.signal_at:
            self.signal_at = None
            os.kill(os.getpid(), self.number)

    def close(self) -> None:
        pass

    @property
    def text(self) -> str:
        return "\n".join(self.notes)


def rows(run_dir: str) -> list[dict[str, str]]:
    """Of metrics.csv, without what depends on the clock."""
    with open(Path(run_dir) / "metrics.csv", newline="") as file:
        return [{k: v for k, v in row.items() if k not in TIMED} for row in csv.DictReader(file)]


def final_state(config):
    """Parameters and optimizer state of the last checkpoint, as flat numpy arrays."""
    checkpoints = Checkpoints(config.run_dir, config.checkpoint)
    newest = checkpoints.latest_step()
    stored = checkpoints.meta(newest)["lineage"].get("growth_plan")
    plan = None if stored is None else GrowthPlan.from_json(json.dumps(stored))
    programs = Programs(config, prepare(config.data).tokenizer, plan=plan)
    state = checkpoints.restore(newest, programs.abstract_state())
    checkpoints.close()
    leaves, _ = jax.tree_util.tree_flatten_with_path(state)
    return {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}


def assert_same(found, expected):
    """To the bit."""
    assert found.keys() == expected.keys()
    for path, leaf in expected.items():
        np.testing.assert_array_equal(found[path], leaf, err_msg=path)
