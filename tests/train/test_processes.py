"""Several processes train one model: `b2b train` over loopback, stopped, killed and continued."""

import csv
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from runs import STEPS, Recorder, tiny_run

from b2b_jax.commands.train import train_command
from b2b_jax.models import ConfigError
from b2b_jax.train.config import CheckpointConfig
from b2b_jax.train.processes import join_processes
from b2b_jax.train.saved import load_model
from b2b_jax.tree import flatten

COMMAND = """
import sys, jax
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_default_matmul_precision", "highest")
from b2b_jax.cli import main
sys.exit(main(sys.argv[1:]))
"""
HEARTBEAT = 10


class Job:
    """Some processes of one training run."""

    def __init__(self, config: Path, *words: str, processes: int = 2) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = listener.getsockname()[1]
        self.output = [config.with_name(f"{config.stem}-{index}.txt") for index in range(processes)]
        self.processes = []
        for index, path in enumerate(self.output):
            environment = os.environ | {
                "JAX_PLATFORMS": "cpu",
                "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                "JAX_NUM_PROCESSES": str(processes),
                "JAX_PROCESS_ID": str(index),
                "B2B_JAX_HEARTBEAT_SECONDS": str(HEARTBEAT),
            }
            with path.open("w") as file:
                self.processes.append(
                    subprocess.Popen(
                        [sys.executable, "-c", COMMAND, "train", str(config), *words],
                        env=environment,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def wait(self) -> list[int]:
        """Exit codes."""
        try:
            return [process.wait(timeout=300) for process in self.processes]
        finally:
            for process in self.processes:
                process.kill()

    def wait_for(self, words: str) -> None:
        """Return when the first process has said something."""
        limit = time.monotonic() + 300
        while words not in self.output[0].read_text():
            assert time.monotonic() < limit and self.processes[0].poll() is None, self.said()
            time.sleep(0.05)

    def said(self) -> str:
        return "\n---\n".join(path.read_text() for path in self.output)


def write_config(folder: Path, name: str, **changes) -> tuple[Path, str]:
    run = tiny_run(folder, name, **changes)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(run.to_dict()))))
    return path, run.run_dir


def losses(run_dir: str) -> list[float]:
    with open(Path(run_dir) / "metrics.csv", newline="") as file:
        return [float(row["heldout_loss"]) for row in csv.DictReader(file) if row["heldout_loss"]]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The run in one process, and the folder of all runs here."""
    folder = tmp_path_factory.mktemp("processes")
    config = tiny_run(folder, "alone")
    assert train_command(config, reporter=Recorder()).exit_code == 0
    return folder, losses(config.run_dir)


@pytest.mark.slow
def test_two_processes_train_as_one(alone):
    folder, expected = alone
    path, run_dir = write_config(folder, "two")
    job = Job(path, "--mesh.preset", "fsdp")
    assert job.wait() == [0, 0], job.said()
    np.testing.assert_allclose(losses(run_dir), expected, rtol=1e-4)
    assert job.output[0].read_text().count("finished at step") == 1
    assert "finished" not in job.output[1].read_text()
    # What two processes wrote one reads, and the other way round.
    one = load_model(run_dir)
    assert one.step == STEPS
    reference = flatten(load_model(str(folder / "alone")).params)
    for name, leaf in flatten(one.params).items():
        np.testing.assert_allclose(leaf, reference[name], rtol=1e-3, atol=2e-4, err_msg=name)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_another_number_of_them_continues(alone):
    folder, expected = alone
    path, run_dir = write_config(folder, "stopped")
    job = Job(path)
    job.wait_for("train  ")
    job.processes[1].send_signal(signal.SIGTERM)
    codes = job.wait()
    assert codes == [75, 75], job.said()
    config = tiny_run(folder, "stopped")
    reporter = Recorder()
    assert train_command(config, reporter=reporter).exit_code == 0
    assert "continues from the checkpoint" in reporter.text
    np.testing.assert_allclose(losses(run_dir)[-1], expected[-1], rtol=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("killed", [0, 1])
def test_a_process_that_dies_ends_the_others_with_a_message_and_the_job_continues(alone, killed):
    folder, expected = alone
    checkpoint = CheckpointConfig(every_steps=1, every_minutes=0.0, keep_last=2, keep_best=0)
    path, run_dir = write_config(folder, f"killed-{killed}", checkpoint=checkpoint)
    job = Job(path)
    job.wait_for("train  ")
    began = time.monotonic()
    job.processes[killed].kill()
    codes = job.wait()
    assert time.monotonic() - began < 6 * HEARTBEAT
    other = 1 - killed
    assert codes[killed] == -signal.SIGKILL and codes[other] != 0, job.said()
    said = job.output[other].read_text()
    assert "another process of the job has ended" in said or "JAX distributed service" in said
    again = Job(path)
    assert again.wait() == [0, 0], again.said()
    np.testing.assert_allclose(losses(run_dir)[-1], expected[-1], rtol=1e-4)


@pytest.mark.parametrize(
    ("environment", "message"),
    [
        ({"JAX_COORDINATOR_ADDRESS": "here:1"}, "JAX_NUM_PROCESSES and JAX_PROCESS_ID is not"),
        (
            {
                "JAX_COORDINATOR_ADDRESS": "here:1",
                "JAX_NUM_PROCESSES": "2",
                "JAX_PROCESS_ID": "2",
            },
            r"JAX_PROCESS_ID is 2, expected 0 to JAX_NUM_PROCESSES - 1 \(1\)",
        ),
        ({"B2B_JAX_HEARTBEAT_SECONDS": "soon"}, "environment: invalid literal"),
        ({"SLURM_STEP_NUM_TASKS": "two"}, "environment: invalid literal"),
    ],
)
def test_an_environment_that_contradicts_itself_is_named(environment, message):
    with pytest.raises(ConfigError, match=message):
        join_processes(environment)


def test_a_process_on_its_own_joins_nobody():
    join_processes({})
    join_processes({"SLURM_STEP_NUM_TASKS": "1", "TPU_WORKER_HOSTNAMES": "localhost"})
