"""Damaged checkpoints: noticed, named, set aside, and the one before them used."""

import contextlib
import errno
import json
import os
import shutil
from importlib.metadata import version
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from harm import change_metadata, flip_an_array, remove_meta, truncate
from hypothesis import given
from hypothesis import strategies as st
from runs import STEPS, Recorder, assert_same, final_state
from stopped_runs import assert_it_goes_on, message

from b2b_jax.cli import main
from b2b_jax.commands.train import train_command
from b2b_jax.train import lock
from b2b_jax.train.checkpoint import Checkpoints, finished_steps
from b2b_jax.train.checksums import checksum, damaged, tree_checksums
from b2b_jax.train.saved import load_model, read_meta, save_model
from b2b_jax.train.stored import CheckpointError, DamagedCheckpoint
from b2b_jax.tree import flatten

# Orbax leaves tasks behind when a file cannot be read.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.mark.parametrize(
    "damage",
    [
        flip_an_array,
        pytest.param(truncate, marks=pytest.mark.slow),
        pytest.param(remove_meta, marks=pytest.mark.slow),
        pytest.param(change_metadata, marks=pytest.mark.slow),
    ],
)
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_is_used(stopped, damage):
    config = stopped.copy(damage.__name__)
    expected = load_model(stopped.whole.run_dir).params
    damage(config.run_dir, 6)
    reporter = Recorder()
    assert train_command(config, reporter=reporter).exit_code == 0
    assert f"{config.run_dir}/checkpoints/6: " in reporter.text
    assert "continues from the checkpoint of step 3" in reporter.text
    (aside,) = (Path(config.run_dir) / "checkpoints").glob("damaged-6-*")
    assert aside.name in reporter.text
    found = load_model(config.run_dir)
    assert found.step == STEPS
    for path, leaf in flatten(expected).items():
        np.testing.assert_array_equal(flatten(found.params)[path], leaf, err_msg=path)


@pytest.mark.parametrize("word", ["PERMISSION_DENIED", "UNAVAILABLE"])
def test_files_that_cannot_be_got_at_are_not_called_damaged(stopped, capsys, monkeypatch, word):
    """A disk that is away or closed for a while; TensorStore makes a ValueError of it."""
    config = stopped.copy(f"away-{word}")
    restore = ocp.CheckpointManager.restore

    def refuse(manager, step, args):
        if {"params"} & set(args.keys()):
            raise ValueError(f"{word}: Error reading local file")
        return restore(manager, step, args=args)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", refuse)
    said = message(config, capsys)
    assert f"{config.run_dir}/checkpoints/6: cannot be read: {word}" in said
    assert finished_steps(config.run_dir) == [3, 6]


@pytest.mark.parametrize(
    ("item", "number"), [("meta", errno.ESTALE), ("meta", errno.EMFILE), ("params", errno.EIO)]
)
def test_a_disk_that_fails_for_a_moment_damages_nothing(stopped, capsys, monkeypatch, item, number):
    config = stopped.copy(f"moment-{item}-{number}")
    restore = ocp.CheckpointManager.restore

    def fail(manager, step, args):
        if {item} & set(args.keys()):
            raise ValueError("Orbax's own words") from OSError(number, os.strerror(number))
        return restore(manager, step, args=args)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", fail)
    assert "/checkpoints/6: cannot be read: Orbax's own words" in message(config, capsys)
    assert finished_steps(config.run_dir) == [3, 6]


def test_a_run_that_another_program_lets_go_of_goes_on(stopped, monkeypatch):
    config, reporter = stopped.copy("let-go"), Recorder()
    with contextlib.ExitStack() as other:
        other.enter_context(lock.sole_user(config.run_dir, reporter=Recorder()))
        monkeypatch.setattr(lock, "_pause", other.close)
        assert train_command(config, reporter=reporter).exit_code == 0
    assert "waiting 120 s for it to end" in reporter.text
    assert "continues from the checkpoint of step 6" in reporter.text
    assert_same(final_state(config), final_state(stopped.whole))


def test_a_run_that_is_being_trained_is_left_alone(stopped, capsys, monkeypatch):
    monkeypatch.setattr(lock, "PATIENCE", 0.5)
    config, reporter = stopped.copy("in-use"), Recorder()
    with lock.sole_user(config.run_dir, reporter=reporter):
        said = message(config, capsys)
    assert said.startswith(f"b2b: {config.run_dir}: another process is training this run.")
    assert finished_steps(config.run_dir) == [3, 6]
    assert_it_goes_on(config, stopped.whole, step=6)


@pytest.mark.slow
def test_a_run_with_no_sound_checkpoint_says_so_and_deletes_nothing(stopped, capsys):
    config = stopped.copy("all")
    for step in (3, 6):
        truncate(config.run_dir, step)
    with pytest.raises(DamagedCheckpoint, match=r"No checkpoint of this run is sound(.|\n)*/3: "):
        train_command(config, reporter=Recorder())
    assert len(list((Path(config.run_dir) / "checkpoints").glob("damaged-*"))) == 2
    reporter = Recorder()
    assert train_command(config, reporter=reporter).exit_code == 0
    assert "no checkpoint yet, from step 0" in reporter.text


def test_values_that_changed_on_disk_are_noticed_by_their_checksum(stopped):
    """Files that can be read, with one other value: what Orbax itself does not see."""
    config = stopped.copy("values")
    saved = load_model(config.run_dir)
    params = jax.tree.map(np.array, saved.params)
    target = Path(config.run_dir) / "other"
    save_model(target, saved.config, params, meta={})
    params["mlm"]["norm"]["scale"][3] = np.nextafter(params["mlm"]["norm"]["scale"][3], 9)
    save_model(Path(config.run_dir) / "changed", saved.config, params, meta={})
    arrays = "checkpoints/0/params"
    shutil.rmtree(target / arrays)
    shutil.copytree(Path(config.run_dir) / "changed" / arrays, target / arrays)
    found = r"have changed .*\['mlm'\]\['norm'\]\['scale'\] \(no older one is here; make this"
    with pytest.raises(DamagedCheckpoint, match=found):
        load_model(target)
    assert main(["inspect", str(target)]) in (0, 1)  # a message or a table, no trace


def test_checkpoints_without_checksums_are_read(stopped):
    config = stopped.copy("old")
    (path,) = (Path(config.run_dir) / "checkpoints" / "6" / "meta").glob("metadata")
    meta = json.loads(path.read_text())
    del meta["checksums"], meta["sha256"]
    path.write_text(json.dumps({**meta, "format": 1}))
    checkpoints = Checkpoints(config.run_dir, config.checkpoint)
    assert "checksums" not in checkpoints.meta(6)
    checkpoints.close()
    assert load_model(config.run_dir).step == 6
    path.write_text(json.dumps({**meta, "format": 3, "library_version": "9.9"}))
    with pytest.raises(CheckpointError, match=r"format 3, this version .* by b2b_jax 9\.9"):
        load_model(config.run_dir)


def test_every_checkpoint_says_which_version_wrote_it(stopped):
    config = stopped.copy("version")
    saved = load_model(config.run_dir)
    grown = Path(config.run_dir) / "grown"
    save_model(grown, saved.config, saved.params, meta={})
    for folder in (config.run_dir, grown):
        assert read_meta(folder)["library_version"] == version("b2b_jax")


def test_settings_that_changed_on_disk_are_noticed(stopped):
    config = stopped.copy("meta")
    (path,) = (Path(config.run_dir) / "checkpoints" / "6" / "meta").glob("metadata")
    path.write_text(path.read_text().replace('"next_step": 6', '"next_step": 7'))
    with pytest.raises(DamagedCheckpoint, match=r"6/meta: has changed since"):
        load_model(config.run_dir)


@given(
    dtype=st.sampled_from(["float32", "bfloat16", "int32", "uint8", "bool"]),
    entry=st.integers(0, 23),
    bit=st.integers(0, 31),
)
def test_every_changed_bit_changes_both_sums(dtype, entry, bit):
    values = jax.random.normal(jax.random.key(0), (4, 6)) * 50
    leaf = (values > 0) if dtype == "bool" else values.astype(dtype)
    raw = np.array(leaf)
    width = raw.itemsize
    raw.view(np.uint8).reshape(24, width)[entry, bit // 8 % width] ^= 1 << (
        0 if dtype == "bool" else bit % 8
    )
    assert (checksum(leaf) != checksum(jnp.asarray(raw))).all()


def test_swapped_entries_and_leaves_are_noticed():
    rows = jnp.arange(12.0).reshape(3, 4)
    sums = tree_checksums({"a": rows, "b": rows + 1})
    assert damaged({"a": rows, "b": rows + 1}, sums) == []
    assert damaged({"a": rows[::-1], "b": rows + 1}, sums) == ["['a']"]
    assert damaged({"a": rows.T.reshape(3, 4), "b": rows}, sums) == ["['a']", "['b']"]
    assert damaged({"c": rows}, sums) == ["['c']"]
    assert damaged({"c": rows}, None) == []


@pytest.mark.parametrize("harm", [flip_an_array, pytest.param(remove_meta, marks=pytest.mark.slow)])
def test_an_older_model_is_named_and_not_read_instead_of_a_damaged_one(stopped, capsys, harm):
    """Growing from an older step without being asked to would be another result."""
    config = stopped.copy(f"grown-from-{harm.__name__}")
    harm(config.run_dir, 6)
    target = Path(config.run_dir) / "grown"
    words = ["grow", config.run_dir, str(target), "--to", "num_hidden_layers=4"]
    assert main(words) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"b2b: {config.run_dir}/checkpoints/6: ")
    assert "(older here: 3; repeat the b2b train of this run, which sets the damaged one" in line
    assert not target.exists()
    assert train_command(config, reporter=Recorder()).exit_code == 0
    assert main(words) == 0
