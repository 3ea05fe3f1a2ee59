"""A disk that is full while a run trains: told in one message, nothing lost, gone on from.

Most of these need no disk of their own: what is written to ``/dev/full`` fails as on a full disk.
"""

import contextlib
import dataclasses
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import needs
import orbax.checkpoint as ocp
import pytest
from jobs import write_yaml
from runs import Recorder, assert_same, final_state, rows, tiny_run
from stopped_runs import assert_it_goes_on, message

from b2b_jax.commands.train import train_command
from b2b_jax.train.checkpoint import finished_steps
from b2b_jax.train.config import CheckpointConfig, LogConfig
from b2b_jax.train.disk import is_full_disk
from b2b_jax.train.saved import load_model
from b2b_jax.train.writers import TensorBoardWriter

MEGABYTE = 2**20


@pytest.fixture
def small_disk(tmp_path):
    """A folder on a disk of four megabytes, which only the superuser may mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
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


@needs.MOUNT
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
    said = ended.stderr.strip()
    assert "\n" not in said, said
    assert said.startswith(f"b2b: {config.run_dir}: the disk is full (free: ")
    assert f"the checkpoint of step {kept[-1]} is kept. Make room and repeat" in said
    assert load_model(config.run_dir).step == kept[-1] >= step > 0

    # Nothing has changed: it is told again, and nothing of what is kept is touched.
    fill(small_disk / "run", leave=0)
    ended = train(path)
    said = ended.stderr.strip()
    assert ended.returncode == 1 and "the disk is full" in said and "\n" not in said, said
    assert finished_steps(config.run_dir) == kept and load_model(config.run_dir).step == kept[-1]

    ballast.unlink()
    (small_disk / "run" / "ballast").unlink()
    ended = train(path)
    assert ended.returncode == 0, ended.stderr
    assert f"continues from the checkpoint of step {kept[-1]}" in ended.stdout
    assert_same(final_state(config), final_state(undisturbed))
    assert rows(config.run_dir) == rows(undisturbed.run_dir)


def test_metrics_that_have_no_room_are_told_and_kept(stopped, capsys):
    config = stopped.copy("metrics")
    before = rows(config.run_dir)
    way_out = Path(config.run_dir) / "metrics.tmp"
    way_out.symlink_to("/dev/full")
    said = message(config, capsys)
    assert said.startswith(f"b2b: {config.run_dir}: the disk is full (free: {config.run_dir} ")
    assert "the checkpoint of step 6 is kept. Make room and repeat the command" in said
    assert rows(config.run_dir) == before
    way_out.unlink()
    assert_it_goes_on(config, stopped.whole, step=6)


def test_a_checkpoint_that_has_no_room_is_told_and_the_one_before_it_kept(
    stopped, capsys, monkeypatch
):
    config = stopped.copy("checkpoint")
    refused = []

    def refuse(manager, step, **options):
        refused.append(step)
        raise ValueError(
            "RESOURCE_EXHAUSTED: Error writing local file: [OS error 28: ENOSPC No space left on "
            "device]"
        )

    monkeypatch.setattr(ocp.CheckpointManager, "save", refuse)
    said = message(config, capsys)
    assert refused == [9]
    assert "the disk is full (free: " in said and "the checkpoint of step 6 is kept" in said
    assert finished_steps(config.run_dir)[-1] == 6
    monkeypatch.undo()
    assert_it_goes_on(config, stopped.whole, step=6)


@contextlib.contextmanager
def full_under(folder: Path) -> Iterator[None]:
    """As if there were no more room for the files of a folder that are open."""
    numbers = []
    for link in Path("/proc/self/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if link.readlink().is_relative_to(folder):
                numbers.append(int(link.name))
    before = {number: os.dup(number) for number in numbers}
    assert before
    full = os.open("/dev/full", os.O_WRONLY)
    for number in before:
        os.dup2(full, number)
    os.close(full)
    try:
        yield
    finally:
        for number, file in before.items():
            os.dup2(file, number)
            os.close(file)


def test_tensorboard_events_on_a_full_disk_raise_and_wait_for_nobody(tmp_path):
    folder = tmp_path / "tensorboard"
    writer = TensorBoardWriter(folder, keep_through=-1)
    writer.write({"step": 1, "loss": 2.0, "stage": "full"})
    with full_under(folder), pytest.raises(OSError, match="No space left") as error:
        writer.write({"step": 2, "loss": 2.0, "grad_norm": 1.0})
    assert is_full_disk(error.value)
    writer.close()


def test_a_full_disk_is_known_by_its_number_or_by_the_words_of_others():
    by_number = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    assert is_full_disk(by_number)
    assert is_full_disk(ValueError("RESOURCE_EXHAUSTED: [OS error 28: No space left on device]"))
    wrapped = ValueError("cannot write")
    wrapped.__cause__ = OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
    assert is_full_disk(wrapped)
    assert not is_full_disk(PermissionError(errno.EACCES, os.strerror(errno.EACCES)))
