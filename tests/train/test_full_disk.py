"""A disk that is full while a run trains: told in one message, nothing lost, gone on from."""

import dataclasses
import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from jobs import write_yaml
from runs import Recorder, assert_same, final_state, rows, tiny_run

from b2b_jax.commands.train import train_command
from b2b_jax.train.checkpoint import finished_steps
from b2b_jax.train.config import CheckpointConfig, LogConfig
from b2b_jax.train.disk import is_full_disk
from b2b_jax.train.saved import load_model
from b2b_jax.train.writers import TensorBoardWriter

MEGABYTE = 2**20


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of four megabytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a disk of a few megabytes cannot be mounted here: {error}")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(folder: Path, *, leave: int) -> Path:
    """A file that leaves so many bytes of a disk."""
    ballast = folder / "ballast"
    room = os.statvfs(folder)
    ballast.write_bytes(bytes(max(room.f_bavail * room.f_frsize - leave, 0)))
    return ballast


def train(path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "b2b_jax.cli", "train", str(path)]
    return subprocess.run(command, capture_output=True, text=True, timeout=1200)


@pytest.mark.slow
def test_a_full_disk_is_told_and_the_run_goes_on_when_there_is_room(tmp_path, small_disk):
    settings = {
        "checkpoint": CheckpointConfig(every_steps=1, every_minutes=0.0, keep_last=2, keep_best=0),
        "log": LogConfig(every_steps=1, tensorboard="on"),
    }
    undisturbed = tiny_run(tmp_path, "undisturbed", **settings)
    assert train_command(undisturbed, reporter=Recorder()).exit_code == 0
    config = dataclasses.replace(undisturbed, run_dir=str(small_disk / "run"))
    path = write_yaml(dataclasses.replace(config, run_dir=str(tmp_path / "full")))
    path.write_text(path.read_text().replace(str(tmp_path / "full"), config.run_dir))

    # Room for two checkpoints and not for three: a new one is written before an old one goes.
    ballast = fill(small_disk, leave=MEGABYTE)
    ended = train(path)
    assert ended.returncode == 1, ended.stderr
    (step, *_) = kept = finished_steps(config.run_dir)
    (message,) = ended.stderr.splitlines()
    assert message.startswith(f"b2b: {config.run_dir}: the disk is full (free: ")
    assert f"the checkpoint of step {kept[-1]} is kept. Make room and repeat" in message
    assert load_model(config.run_dir).step == kept[-1] >= step > 0

    # Nothing has changed: it is told again, and nothing of what is kept is touched.
    fill(small_disk / "run", leave=0)
    ended = train(path)
    (message,) = ended.stderr.splitlines()
    assert ended.returncode == 1 and "the disk is full" in message
    assert finished_steps(config.run_dir) == kept and load_model(config.run_dir).step == kept[-1]

    ballast.unlink()
    (small_disk / "run" / "ballast").unlink()
    ended = train(path)
    assert ended.returncode == 0, ended.stderr
    assert f"continues from the checkpoint of step {kept[-1]}" in ended.stdout
    assert_same(final_state(config), final_state(undisturbed))
    assert rows(config.run_dir) == rows(undisturbed.run_dir)


def test_tensorboard_events_on_a_full_disk_raise_and_wait_for_nobody(small_disk):
    writer = TensorBoardWriter(small_disk / "tensorboard", start_step=0)
    writer.write({"step": 1, "loss": 2.0, "stage": "full"})
    ballast = fill(small_disk, leave=0)

    def write_on() -> None:
        for step in range(2, 1000):
            writer.write({"step": step, "loss": 2.0, "grad_norm": 1.0})

    with pytest.raises(OSError, match="No space left") as error:
        write_on()
    assert is_full_disk(error.value)
    ballast.unlink()
    writer.close()


def test_a_full_disk_is_known_by_its_number_or_by_the_words_of_others():
    by_number = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert is_full_disk(by_number)
    assert is_full_disk(ValueError("RESOURCE_EXHAUSTED: [OS error 28: No space left on device]"))
    wrapped = ValueError("cannot write")
    wrapped.__cause__ = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert is_full_disk(wrapped)
    assert not is_full_disk(PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
