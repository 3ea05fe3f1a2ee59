"""Several processes train one model: `b2b train` over loopback, stopped, killed and continued."""

import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from harm import flip_an_array, remove_meta
from jobs import HEARTBEAT, losses, train_all, train_job, write_config
from runs import STEPS, Recorder, tiny_run

from b2b_jax.commands.train import train_command
from b2b_jax.models import ConfigError
from b2b_jax.train import lock
from b2b_jax.train.checkpoint import finished_steps
from b2b_jax.train.config import CheckpointConfig
from b2b_jax.train.processes import join_processes
from b2b_jax.train.saved import load_model
from b2b_jax.tree import flatten


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
    job = train_all(path, "--mesh.preset", "fsdp")
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
def test_processes_with_other_settings_are_refused(tmp_path):
    path, run_dir = write_config(tmp_path, "unlike")
    words = ("--train.seed", "{process}", "--optimizer.peak_learning_rate", "0.0{process}1")
    job = train_job(path, *words)
    assert job.wait() == [1, 1], job.said()
    said = job.output[1].read_text()
    assert "do not see the same" in said and "Traceback" not in job.said()
    assert "train.seed (here 1)" in said and "optimizer.peak_learning_rate (here 0.011)" in said
    assert not (Path(run_dir) / "config.yaml").exists()


@pytest.mark.slow
@pytest.mark.parametrize("begun", ["meanwhile", "before"])
def test_a_job_waits_for_a_run_that_another_program_has(alone, begun):
    """It may save its first checkpoint meanwhile, so that no process may look before."""
    folder, _ = alone
    path, run_dir = write_config(folder, f"held-{begun}")
    settings = Path(run_dir) / "config.yaml"

    def save() -> None:
        for part in ("config.yaml", "lineage.json", "metrics.csv"):
            shutil.copy(folder / "alone" / part, run_dir)
        settings.write_text(settings.read_text().replace(f"{folder}/alone", run_dir))
        shutil.copytree(folder / "alone" / "checkpoints", Path(run_dir) / "checkpoints")

    with lock.sole_user(run_dir, reporter=Recorder()):
        if begun == "before":
            save()
        job = train_job(path)
        job.wait_for("waiting 120 s")
        time.sleep(2)  # the other process gets as far as it can
        if begun == "meanwhile":
            save()
    assert job.wait() == [0, 0], job.said()
    assert "finished before, at step 12" in job.output[0].read_text(), job.said()


@pytest.mark.slow
def test_a_job_whose_run_is_not_let_go_of_is_refused_in_every_process(alone):
    folder, _ = alone
    path, run_dir = write_config(folder, "kept")
    with lock.sole_user(run_dir, reporter=Recorder()):
        job = train_job(path, patience=2.0)
        assert job.wait() == [1, 1], job.said()
    assert all("another process is training" in file.read_text() for file in job.output)


@pytest.mark.slow
def test_a_signal_to_one_process_stops_all_and_another_number_of_them_continues(alone):
    folder, expected = alone
    path, run_dir = write_config(folder, "stopped")
    job = train_job(path)
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
    job = train_job(path)
    metrics = Path(run_dir) / "metrics.csv"
    job.wait_until(lambda: metrics.exists() and metrics.read_text().count("\n") > 2)
    began = time.monotonic()
    job.processes[killed].kill()
    codes = job.wait()
    assert time.monotonic() - began < 6 * HEARTBEAT
    other = 1 - killed
    assert codes[killed] == -signal.SIGKILL and codes[other] != 0, job.said()
    said = job.output[other].read_text()
    assert "another process of the job has ended" in said or "JAX distributed service" in said
    train_all(path)
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
        ({"MEGASCALE_NUM_SLICES": "two"}, "environment: invalid literal"),
    ],
)
def test_an_environment_that_contradicts_itself_is_named(environment, message):
    with pytest.raises(ConfigError, match=message):
        join_processes(environment)


def test_a_process_on_its_own_joins_nobody():
    join_processes({})
    join_processes({"SLURM_STEP_NUM_TASKS": "1", "TPU_WORKER_HOSTNAMES": "localhost"})


@pytest.mark.slow
@pytest.mark.parametrize("harm", [flip_an_array, remove_meta])
def test_damage_that_a_job_finds_is_set_aside_and_the_job_started_again_goes_on(alone, harm):
    folder, expected = alone
    checkpoint = CheckpointConfig(every_steps=4, every_minutes=0.0, keep_last=3, keep_best=0)
    path, run_dir = write_config(folder, f"job-{harm.__name__}", checkpoint=checkpoint)
    train_all(path, "--mesh.preset", "fsdp")
    checkpoints = Path(run_dir) / "checkpoints"
    shutil.rmtree(checkpoints / "12")
    harm(run_dir, 8)
    job = train_job(path, "--mesh.preset", "fsdp")
    codes = job.wait()
    said = [file.read_text() for file in job.output]
    assert 75 in codes and 0 not in codes, job.said()
    assert f"{checkpoints}/8" in said[codes.index(75)] and "set aside as damaged-8-1" in job.said()
    assert finished_steps(run_dir) == [4] and (checkpoints / "damaged-8-1").is_dir()
    again = train_all(path, "--mesh.preset", "fsdp")
    assert "continues from the checkpoint of step 4" in again.said()
    np.testing.assert_allclose(losses(run_dir), expected, rtol=1e-4)
