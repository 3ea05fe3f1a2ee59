"""A run can be stopped anywhere and goes on as if it had not been."""

import csv
import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
import yaml
from runs import (
    STAGE_ONE,
    STEPS,
    Recorder,
    assert_same,
    final_state,
    rows,
    tiny_run,
    write_text,
)

from b2b_jax.commands.train import train_command
from b2b_jax.data import train_batches
from b2b_jax.models import ConfigError
from b2b_jax.train import loop
from b2b_jax.train.checkpoint import Checkpoints
from b2b_jax.train.config import CheckpointConfig, changed_fields
from b2b_jax.train.meter import Meter, NonFiniteLoss
from b2b_jax.train.optim import OptimizerConfig
from b2b_jax.train.programs import Programs
from b2b_jax.train.saved import load_model
from b2b_jax.train.stages import TwoStageConfig
from b2b_jax.train.stored import CheckpointError
from b2b_jax.train.writers import CsvWriter
from b2b_jax.tree import flatten


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def undisturbed(folder):
    config = tiny_run(folder, "undisturbed")
    outcome = train_command(config, reporter=Recorder())
    assert (outcome.exit_code, outcome.step) == (0, STEPS)
    return config, final_state(config), rows(config.run_dir)


@pytest.mark.parametrize(
    ("step", "number", "code"),
    [
        pytest.param(3, signal.SIGTERM, 75, marks=pytest.mark.slow),
        (STAGE_ONE, signal.SIGTERM, 75),
        pytest.param(9, signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_stopped_run_continues_bit_identically(folder, undisturbed, step, number, code):
    config = tiny_run(folder, f"stopped-{step}")
    first = Recorder(signal_at=step, number=number)
    outcome = train_command(config, reporter=first)
    assert (outcome.exit_code, outcome.step) == (code, step)
    assert "repeat the command to continue" in first.text
    second = Recorder()
    outcome = train_command(config, reporter=second)
    assert (outcome.exit_code, outcome.step) == (0, STEPS)
    assert f"continues from the checkpoint of step {step}" in second.text
    assert_same(final_state(config), undisturbed[1])
    assert rows(config.run_dir) == undisturbed[2]


def test_a_finished_run_is_reused_and_says_so(undisturbed):
    reporter = Recorder()
    outcome = train_command(undisturbed[0], reporter=reporter)
    assert outcome.exit_code == 0 and outcome.heldout_loss is not None
    assert "finished before, at step 12; nothing to do" in reporter.text


def test_metrics_hold_both_stages(undisturbed):
    table = undisturbed[2]
    assert [int(row["step"]) for row in table] == [0, 2, 4, 6, 8, 10, 12]
    assert [row["stage"] for row in table] == ["sub"] * 4 + ["full"] * 3
    evaluated = [int(row["step"]) for row in table if row["heldout_loss"]]
    assert evaluated == [0, 4, STAGE_ONE, 8, 12]
    boundary = table[3]
    depths = [float(boundary[f"heldout_depth_{depth}"]) for depth in (1, 2)]
    assert float(boundary["heldout_submodel_mean"]) == pytest.approx(np.mean(depths))
    assert float(boundary["heldout_loss"]) == depths[1]
    assert boundary["loss_depth_1"] or boundary["loss_depth_2"]
    for name in ("flops_exact", "flops_electra"):
        counts = [float(row[name]) for row in table]
        assert counts[0] == 0 and np.all(np.diff(counts) > 0)
        assert counts[2] - counts[1] < counts[-1] - counts[-2]  # sub-model steps are cheaper
    assert float(table[0]["heldout_loss"]) > float(table[-1]["heldout_loss"])


def test_time_spent_waiting_for_data_is_told(folder, monkeypatch):
    """On a clock of its own: every batch takes one second to come, every step three to run."""
    now, count_step = [0.0], Meter.step

    def slow_batches(*args, **kwargs):
        for batch in train_batches(*args, **kwargs):
            now[0] += 1.0
            yield batch

    def slow_step(*args):
        now[0] += 3.0
        count_step(*args)

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    monkeypatch.setattr(loop, "train_batches", slow_batches)
    monkeypatch.setattr(Meter, "step", slow_step)
    reporter = Recorder()
    config = tiny_run(folder, "starved", two_stage=TwoStageConfig(steps=0))
    outcome = train_command(config, reporter=reporter)
    assert (outcome.seconds, outcome.data_wait) == (4.0 * STEPS, 1.0 * STEPS)
    assert "0:48 of training, 25.0 % of it waiting for data" in reporter.text
    told = [line.endswith("  waiting for data 25 %") for line in reporter.lines]
    assert told == [False] + STEPS * [True]  # the first line is about compiling
    with open(Path(config.run_dir) / "metrics.csv", newline="") as file:
        shares = [row["data_wait"] for row in csv.DictReader(file)]
    assert shares == ["", *["0.25"] * (STEPS // 2)]


class CompileCounter(Recorder):
    """Counts what JAX traces, lowers or compiles, up to every step."""

    def __init__(self) -> None:
        super().__init__()
        self.events, self.by_step = 0, []

    def listen(self, event: str, seconds: float, **details) -> None:
        self.events += event.startswith("/jax/core/compile")

    def update(self, done: int, total: int, *, text: str, seconds_left: float | None) -> None:
        super().update(done, total, text=text, seconds_left=seconds_left)
        if not text.startswith("compiling"):
            self.by_step.append(self.events)


def test_switching_between_sub_models_compiles_nothing(folder, undisturbed):
    config = tiny_run(folder, "switching")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, seed=5))
    drawn = [config.schedule.sub_model(step).depth for step in range(STAGE_ONE)]
    assert len(set(drawn)) > 1, "the test has to see a switch"
    reporter = CompileCounter()
    jax.monitoring.register_event_duration_secs_listener(reporter.listen)
    try:
        train_command(config, reporter=reporter)
    finally:
        jax.monitoring.unregister_event_duration_listener(reporter.listen)
    stage_one, stage_two = reporter.by_step[:STAGE_ONE], reporter.by_step[STAGE_ONE:]
    assert 0 < stage_one[0] < stage_two[0], "the step of stage two was compiled in between"
    assert set(stage_one) == {stage_one[0]}


def test_run_folder_says_what_it_is(undisturbed):
    run_dir = Path(undisturbed[0].run_dir)
    resolved = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert resolved == json.loads(json.dumps(undisturbed[0].to_dict()))
    assert "sub-models" in (run_dir / "README.md").read_text()
    saved = load_model(run_dir)
    assert saved.config == undisturbed[0].model
    assert saved.meta["config"] == resolved
    assert saved.meta["data"]["next_step"] == STEPS


def test_a_changed_config_refuses_and_names_the_fields(undisturbed):
    config = undisturbed[0]
    changed = dataclasses.replace(
        config,
        optimizer=dataclasses.replace(config.optimizer, peak_learning_rate=5e-3),
        train=dataclasses.replace(config.train, steps=20),
    )
    with pytest.raises(ConfigError) as error:
        train_command(changed, reporter=Recorder())
    assert "optimizer.peak_learning_rate: 0.01 -> 0.005" in str(error.value)
    assert "train.steps: 12 -> 20" in str(error.value)


def test_fields_that_change_no_result_may_change():
    before = {"checkpoint": {"every_steps": 1}, "compute": {"remat": "none", "dtype": "a"}}
    after = {"checkpoint": {"every_steps": 2}, "compute": {"remat": "full", "dtype": "b"}}
    assert changed_fields(before, after) == ["compute.dtype: 'a' -> 'b'"]


def test_a_non_finite_loss_stops_with_the_step_and_keeps_the_checkpoint(folder):
    config = tiny_run(
        folder,
        "diverged",
        optimizer=OptimizerConfig(peak_learning_rate=1e-3, warmup_steps=2),
        checkpoint=CheckpointConfig(every_steps=3, every_minutes=0.0),
    )
    reporter = Recorder(signal_at=7)
    assert train_command(config, reporter=reporter).exit_code == 75
    checkpoints = Checkpoints(config.run_dir, config.checkpoint)
    programs = Programs(config, _tokenizer(config))
    state = checkpoints.restore(7, programs.abstract_state())
    poisoned = jax.tree.map(lambda leaf: leaf, state.params)
    poisoned["mlm"]["norm"]["scale"] = poisoned["mlm"]["norm"]["scale"] * np.nan
    meta = checkpoints.meta(7)
    meta["progress"]["step"] = 8
    checkpoints.save(dataclasses.replace(state, params=poisoned), meta, step=8)
    checkpoints.wait()
    checkpoints.close()
    with pytest.raises(NonFiniteLoss, match=r"step 9: loss nan.*checkpoint of step 8 is kept"):
        train_command(config, reporter=Recorder())
    checkpoints = Checkpoints(config.run_dir, config.checkpoint)
    assert checkpoints.latest_step() == 8
    checkpoints.close()


def _tokenizer(config):
    from b2b_jax.data import prepare

    return prepare(config.data).tokenizer


def test_newest_and_best_checkpoints_are_kept(tmp_path):
    config = tiny_run(tmp_path)
    programs = Programs(config, _tokenizer(config))
    state = programs.create_state(programs.init_params())
    checkpoints = Checkpoints(tmp_path / "kept", CheckpointConfig(keep_last=2, keep_best=1))
    for step, loss in enumerate([5.0, 2.0, 4.0, 3.0, 3.5]):
        checkpoints.save(state, {"step": step}, step=step, heldout_loss=loss)
        checkpoints.wait()
    assert checkpoints.steps() == [1, 3, 4]
    checkpoints.close()


def test_other_data_under_a_run_refuses(tmp_path):
    config = tiny_run(tmp_path)
    assert train_command(config, reporter=Recorder(signal_at=4)).exit_code == 75
    text = write_text(tmp_path / "text.txt")
    text.write_text(text.read_text().replace("gradient", "difference"))
    os.utime(text, ns=(1, 1))
    with pytest.raises(ValueError, match=r"was trained on data .*another train\.npy"):
        train_command(config, reporter=Recorder())


def test_csv_drops_rows_after_the_checkpoint_and_lines_cut_off(tmp_path):
    path = tmp_path / "metrics.csv"
    columns = ("step", "loss", "seconds")
    path.write_text("step,loss,seconds\n0,1.0,0\n2,0.9,1\n4,0.8,2\n6,0.")
    writer = CsvWriter(path, columns, keep_through=4)
    writer.write({"step": 5, "loss": 0.7, "seconds": 3.0})
    writer.close()
    assert path.read_text().split() == [
        "step,loss,seconds",
        "0,1.0,0",
        "2,0.9,1",
        "4,0.8,2",
        "5,0.7,3.0",
    ]


def test_a_folder_without_a_model_says_so(tmp_path):
    with pytest.raises(CheckpointError, match="no such folder"):
        load_model(tmp_path / "nothing")
    with pytest.raises(CheckpointError, match="no checkpoints/ folder"):
        load_model(tmp_path)


def _kill_and_repeat(config, moments: list[int]) -> None:
    """Run in another process; kill -9 as soon as metrics.csv shows one of the steps."""
    path = Path(config.run_dir).parent / f"{Path(config.run_dir).name}.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config.to_dict()))))
    command = [sys.executable, "-m", "b2b_jax.cli", "train", str(path)]
    metrics = Path(config.run_dir) / "metrics.csv"
    for moment in moments:
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline:
            lines = metrics.read_text().splitlines() if metrics.exists() else []
            last = lines[-1].split(",")[0] if lines else ""
            if last.isdigit() and int(last) >= moment:
                process.kill()
            time.sleep(0.005)
        assert process.wait() in (-signal.SIGKILL, 0)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_kill_9_and_repeat_gives_the_same_run(folder, undisturbed):
    config = tiny_run(folder, "killed")
    _kill_and_repeat(config, [8])
    assert_same(final_state(config), undisturbed[1])
    assert rows(config.run_dir) == undisturbed[2]


@pytest.mark.slow
def test_kill_9_at_many_moments(folder, undisturbed):
    config = tiny_run(folder, "killed-often")
    _kill_and_repeat(config, [0, 2, 4, 6, 6, 8, 10])
    assert_same(final_state(config), undisturbed[1])
    assert rows(config.run_dir) == undisturbed[2]


@pytest.mark.slow
def test_sigterm_exits_75_from_the_command_line(folder):
    config = tiny_run(folder, "terminated")
    config = dataclasses.replace(config, train=dataclasses.replace(config.train, steps=4000))
    path = folder / "terminated.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config.to_dict()))))
    process = subprocess.Popen(
        [sys.executable, "-m", "b2b_jax.cli", "train", str(path)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = folder / "terminated" / "metrics.csv"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if metrics.exists() and len(metrics.read_text().splitlines()) > 6:
            break
        time.sleep(0.02)
    process.terminate()
    output, errors = process.communicate(timeout=60)
    assert process.returncode == 75, errors
    assert "stopped and saved" in output
    assert flatten(load_model(folder / "terminated").params)
