"""Killed with -9 at random moments, again and again, a run ends as one that was left in peace."""

import dataclasses
import multiprocessing
import random
import signal
import time
from pathlib import Path

import pytest
from jobs import TIMEOUT, command_line, losses, train_all, train_job, write_config, write_yaml
from runs import TRAIN, Recorder, assert_same, final_state, rows, tiny_run

from b2b_jax.cli import main
from b2b_jax.commands.train import train_command
from b2b_jax.train.checkpoint import UNFINISHED, finished_steps
from b2b_jax.train.config import CheckpointConfig, LogConfig
from b2b_jax.train.saved import load_model
from b2b_jax.train.stages import TwoStageConfig

KILLS, STEPS, STAGE_ONE = 20, 60, 30
SIZES = "hidden_size=32,num_attention_heads=4,intermediate_size=64,num_hidden_layers=2"
LONG = {
    "train": dataclasses.replace(TRAIN, steps=STEPS, eval_every=10, eval_batches=1),
    "two_stage": TwoStageConfig(steps=STAGE_ONE, layers_per_block=1),
    "checkpoint": CheckpointConfig(every_steps=3, every_minutes=0.0, keep_last=2, keep_best=1),
    "log": LogConfig(every_steps=1, tensorboard="on"),
}


# Every process begins with what takes longest imported, and is a process of its own all the same.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["b2b_jax.commands.job", "b2b_jax.commands.train"])


class Sitting:
    """One process of the command line, until it ends or is killed."""

    def __init__(self, words: list[str], log: Path) -> None:
        self.log = log
        log.write_bytes(b"")
        self.process = PROCESSES.Process(target=command_line, args=(words, str(log)))
        self.process.start()

    def kill_when(self, is_time, *, after: float = 0.0) -> None:
        """Kill -9 some seconds after a moment has come, which must be before the end."""
        limit = time.monotonic() + TIMEOUT
        while not is_time():
            assert self.process.exitcode is None, self.log.read_text()
            if time.monotonic() > limit:
                self.process.kill()
                raise AssertionError(self.log.read_text())
            time.sleep(0.004)
        time.sleep(after)
        self.process.kill()
        self.process.join()
        assert self.process.exitcode == -signal.SIGKILL, self.log.read_text()

    def kill_when_said(self, words: str, *, after: float) -> None:
        self.kill_when(lambda: self.said(words), after=after)

    def said(self, words: str) -> bool:
        return words in self.log.read_text()


def reached(run_dir: str) -> int:
    """The last step of metrics.csv; -1 if it has none."""
    path = Path(run_dir) / "metrics.csv"
    if not path.exists():
        return -1
    step = path.read_text().rpartition("\n")[0].rpartition("\n")[2].split(",")[0]
    return int(step) if step.isdigit() else -1


def unfinished(run_dir: str) -> list[Path]:
    return list((Path(run_dir) / "checkpoints").glob(f"*{UNFINISHED}"))


@pytest.mark.slow
def test_twenty_kills_from_the_growth_to_the_end(tmp_path, record_property):
    """While it grows, before its first checkpoint, while one is written, in and between stages."""
    rng = random.Random(20)
    small = tiny_run(tmp_path, "small")
    assert train_command(small, reporter=Recorder()).exit_code == 0

    def grow(name: str) -> list[str]:
        words = ["grow", small.run_dir, str(tmp_path / name), "--to", SIZES, "--method", "aki"]
        return [*words, "--seed", "3"]

    def run(name: str, init: str):
        config = tiny_run(tmp_path, name, init=str(tmp_path / init), **LONG)
        optimizer = dataclasses.replace(config.optimizer, state="grow")
        model = load_model(tmp_path / "grown").config
        return dataclasses.replace(config, model=model, optimizer=optimizer)

    assert main(grow("grown")) == 0
    undisturbed = run("undisturbed", "grown")
    assert train_command(undisturbed, reporter=Recorder()).exit_code == 0

    # The growth itself: its folder is there whole or not at all.
    for moment in ("parameter ", "layers/mlp"):
        sitting = Sitting(grow("grown-killed"), tmp_path / "log.txt")
        sitting.kill_when_said(moment, after=rng.uniform(0, 0.1))
    assert main(grow("grown-killed")) == 0
    assert (
        load_model(tmp_path / "grown-killed").fingerprint
        == load_model(undisturbed.init).fingerprint
    )

    config = run("killed", "grown-killed")
    words, run_dir = ["train", str(write_yaml(config))], config.run_dir
    # The run's start, where its first state is made: there is no checkpoint to go on from yet.
    starts = ["init: parameters", "init: moments", "start: no checkpoint yet", "compiled the step"]
    for moment in starts:
        sitting = Sitting(words, tmp_path / "log.txt")
        sitting.kill_when_said(moment, after=rng.uniform(0, 0.02))
        assert not finished_steps(run_dir), "a kill before the first checkpoint came too late"

    # Ascending, so that the run gets to its end; two at the boundary of the stages.
    targets = sorted([*rng.sample(range(1, STEPS - 10), 14), STAGE_ONE - 1, STAGE_ONE])
    writing, stages = 0, {"sub": 0, "full": 0}
    for index, target in enumerate(targets):
        sitting = Sitting(words, tmp_path / "log.txt")
        is_write = index % 2 == 0

        def is_time(sitting=sitting, target=target, is_write=is_write) -> bool:
            if not sitting.said("compiled the step") or reached(run_dir) < target:
                return False
            return bool(unfinished(run_dir)) if is_write else True

        sitting.kill_when(is_time, after=rng.uniform(0, 0.03))
        writing += bool(unfinished(run_dir))
        stages["sub" if reached(run_dir) <= STAGE_ONE else "full"] += 1
    assert len(starts) + len(targets) == KILLS
    record_property("kills while a checkpoint was written", writing)
    print(f"{writing} of {KILLS} kills hit a checkpoint that was being written, by stage {stages}")
    assert writing >= 5 and min(stages.values()) >= 5
    assert main(words) == 0
    assert_same(final_state(config), final_state(undisturbed))
    assert rows(run_dir) == rows(undisturbed.run_dir)
    assert not unfinished(run_dir)


@pytest.mark.slow
def test_four_kills_of_a_job_of_two_processes(tmp_path):
    """All of it or one process at a time; what is killed is started again as a whole."""
    rng = random.Random(4)
    undisturbed, expected = write_config(tmp_path, "undisturbed", **LONG)
    train_all(undisturbed, "--mesh.preset", "fsdp")
    path, run_dir = write_config(tmp_path, "killed", **LONG)
    writing = 0
    for target, killed in ((4, [0, 1]), (17, [1]), (31, [0]), (45, [0, 1])):
        job = train_job(path, "--mesh.preset", "fsdp")
        job.wait_for("compiled the step")
        limit = time.monotonic() + TIMEOUT
        while reached(run_dir) < target or not unfinished(run_dir):
            assert job.processes[0].poll() is None and time.monotonic() < limit, job.said()
            time.sleep(0.004)
        time.sleep(rng.uniform(0, 0.03))
        for index in killed:
            job.processes[index].kill()
        codes = job.wait()
        assert 0 not in codes and all(codes[index] == -signal.SIGKILL for index in killed), codes
        writing += bool(unfinished(run_dir))
    print(f"{writing} of 4 kills hit a checkpoint that was being written")
    job = train_all(path, "--mesh.preset", "fsdp")
    assert "continues from the checkpoint" in job.output[0].read_text()
    assert losses(run_dir) == losses(expected)
    assert rows(run_dir) == rows(expected)
