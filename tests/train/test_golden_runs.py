"""Runs that older versions of the package have left are read as they were left."""

import tarfile
from pathlib import Path

import jax
import numpy as np
import pytest
from runs import tiny_run

from b2b_jax.commands.abstract import stand_in_tokenizer
from b2b_jax.train.checkpoint import Checkpoints
from b2b_jax.train.programs import Programs
from b2b_jax.train.saved import load_model
from b2b_jax.train.stages import full_model
from b2b_jax.train.stored import FORMAT, READS
from b2b_jax.tree import flatten

GOLDEN = Path(__file__).with_name("golden")
# Of the parameters at step 8, as the version that wrote them printed it.
FINGERPRINTS = dict.fromkeys(
    (1, 2), "ed08b370d2b6854c343e4c42715fb9d9cf61baecd47db0607dafbdf7571eef6d"
)


def test_there_is_a_run_of_every_format():
    assert set(FINGERPRINTS) == set(READS) and FORMAT in READS
    assert {path.name for path in GOLDEN.iterdir()} == {f"format{n}.tar.gz" for n in READS}


@pytest.mark.parametrize("number", READS)
def test_a_run_of_an_older_format_can_be_trained_on(tmp_path, number):
    with tarfile.open(GOLDEN / f"format{number}.tar.gz") as archive:
        archive.extractall(tmp_path / "old", filter="data")
    saved = load_model(tmp_path / "old")
    assert (saved.step, saved.meta["format"]) == (8, number)
    assert saved.fingerprint == FINGERPRINTS[number]

    config = tiny_run(tmp_path, "old")
    programs = Programs(config, stand_in_tokenizer(config.model))
    checkpoints = Checkpoints(config.run_dir, config.checkpoint)
    state = checkpoints.restore(8, programs.abstract_state())
    checkpoints.close()
    assert int(state.step) == 8
    params = flatten(saved.params)
    for path, leaf in flatten(state.params).items():
        np.testing.assert_array_equal(leaf, params[path], err_msg=path)
    counts = [leaf for leaf in jax.tree.leaves(state.opt_state) if leaf.dtype == np.int32]
    assert counts and all((np.asarray(leaf) > 0).all() for leaf in counts)
    batch = programs.put(np.arange(64, dtype=np.int32).reshape(4, 16))
    programs.compile_train_step(full_model(2), state, batch)
    after, metrics = programs.train_step(full_model(2))(state, batch)
    assert int(after.step) == 9 and np.isfinite(float(metrics.loss.total))
