"""Training that goes on from a grown model: its moments, its rates, its copies."""

import csv
import dataclasses

import jax
import numpy as np
import optax
import pytest
import yaml
from runs import Recorder, tiny_run

from b2b_jax.cli import main
from b2b_jax.commands.train import train_command
from b2b_jax.growth import GrowthPlan, grow_optimizer_state
from b2b_jax.models import ConfigError
from b2b_jax.train.optim import OptimizerConfig, make_optimizer
from b2b_jax.train.saved import load_model
from b2b_jax.train.starting import load_optimizer
from b2b_jax.train.stored import CheckpointError
from b2b_jax.tree import flatten

SIZES = "hidden_size=32,num_attention_heads=4,intermediate_size=64,num_hidden_layers=2"


@pytest.fixture(scope="module")
def grown(tmp_path_factory):
    """A short run and what it is grown to."""
    folder = tmp_path_factory.mktemp("grown_runs")
    config = tiny_run(folder, "small")
    assert train_command(config, reporter=Recorder()).exit_code == 0
    words = ["grow", str(folder / "small"), str(folder / "large"), "--to", SIZES]
    assert main([*words, "--method", "fpi"]) == 0
    return folder, config


def continued(folder, config, name, *, log="off", **optimizer):
    model = load_model(folder / "large").config
    return dataclasses.replace(
        config,
        run_dir=str(folder / name),
        init=str(folder / "large"),
        model=model.replace(hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        optimizer=dataclasses.replace(config.optimizer, **optimizer),
        log=dataclasses.replace(config.log, symmetry=log),
    )


def optimizer_state(folder):
    """Of the newest checkpoint of a run."""
    saved = load_model(folder)
    return load_optimizer(folder, step=saved.step, fingerprint=saved.fingerprint)


def adam(state) -> optax.ScaleByAdamState:
    def is_adam(node):
        return isinstance(node, optax.ScaleByAdamState)

    (found,) = filter(is_adam, jax.tree.leaves(state, is_leaf=is_adam))
    return found


@pytest.mark.slow
def test_moments_grow_with_the_parameters(grown):
    folder, config = grown
    reporter = Recorder()
    run = continued(folder, config, "moments", state="grow")
    assert train_command(run, reporter=reporter).exit_code == 0
    assert any("moments of" in line for line in reporter.notes)
    plan = GrowthPlan.from_json((folder / "large" / "growth_plan.json").read_text())
    before = optimizer_state(folder / "small")
    assert float(np.abs(jax.tree.leaves(adam(before).mu)[0]).max()) > 0
    after = optimizer_state(folder / "moments")
    expected = adam(grow_optimizer_state(before, plan))
    shapes = {path: leaf.shape for path, leaf in flatten(adam(after).mu).items()}
    assert shapes == {path: leaf.shape for path, leaf in flatten(expected.mu).items()}
    # The schedule starts anew: the last row of a run has the same rate with and without.
    fresh = continued(folder, config, "fresh")
    train_command(fresh, reporter=Recorder())
    rates = [rows(folder / name)[-1]["learning_rate"] for name in ("moments", "fresh")]
    assert rates[0] == rates[1]
    losses = [rows(folder / name)[-1]["loss"] for name in ("moments", "fresh")]
    assert losses[0] != losses[1]
    # Every layer counts the updates of the source and those since.
    since = adam(optimizer_state(folder / "fresh")).count
    counts = jax.tree.map(lambda one, other: np.asarray(one + other), expected.count, since)
    jax.tree.map(np.testing.assert_array_equal, adam(after).count, counts)
    assert max(leaf.max() for leaf in jax.tree.leaves(counts)) > run.train.steps


def rows(run_dir) -> list[dict[str, str]]:
    with (run_dir / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.slow
def test_copies_are_watched_and_a_run_with_scaled_rates_continues(grown):
    folder, config = grown
    run = continued(folder, config, "watched", log="on", rate_scale="copies")
    short = dataclasses.replace(run, run_dir=str(folder / "watched"))
    assert train_command(short, reporter=Recorder()).exit_code == 0
    evaluated = [row for row in rows(folder / "watched") if row["heldout_loss"]]
    for axis in ("embed", "heads", "mlp"):
        distances = [float(row[f"copy_distance_{axis}"]) for row in evaluated]
        # Without dropout nothing parts exact copies: growth without split or noise is tied.
        assert max(distances) < 1e-3, (axis, distances)
    state = optimizer_state(folder / "watched")
    assert len(state) == len(optimizer_state(folder / "small")) + 1
    again = Recorder()
    assert train_command(short, reporter=again).exit_code == 0
    assert any("finished before" in line for line in again.notes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate_scale": "copies"}, "optimizer.rate_scale: found 'copies', which is for grown"),
        ({"state": "grow"}, "is no grown model, or was trained"),
        ({"log": "on"}, "log.symmetry: found 'on', which is for grown"),
    ],
    ids=str,
)
def test_what_only_a_grown_model_can_do(grown, changes, message):
    folder, config = grown
    run = continued(folder, config, "refused", **changes)
    run = dataclasses.replace(run, init=str(folder / "small"), model=config.model)
    with pytest.raises(ConfigError, match=message):
        train_command(run, reporter=Recorder())
    assert not (folder / "refused" / "checkpoints").exists()


def test_rates_by_copies_need_a_plan(grown):
    _, config = grown
    with pytest.raises(ConfigError, match="'copies' is for grown models"):
        make_optimizer(
            OptimizerConfig(rate_scale="copies"), config.model.axis_table(), total_steps=1
        )


def test_moments_that_are_gone(grown):
    folder, _ = grown
    with pytest.raises(CheckpointError, match=r"the checkpoint of step 999 is gone, found \["):
        load_optimizer(folder / "small", step=999, fingerprint="")
    with pytest.raises(CheckpointError, match="holds other parameters than those that grew"):
        load_optimizer(folder / "small", step=load_model(folder / "small").step, fingerprint="x")
    with pytest.raises(CheckpointError, match="was not trained by b2b train"):
        load_optimizer(folder / "large", step=0, fingerprint="")


@pytest.mark.slow
def test_a_stopped_run_goes_on_with_grown_moments_and_scaled_rates(grown):
    """As one that was not stopped, to the bit; what was watched keeps its columns."""
    folder, config = grown
    settings = {"state": "grow", "rate_scale": "copies"}
    whole = continued(folder, config, "whole", log="on", **settings)
    assert train_command(whole, reporter=Recorder()).exit_code == 0
    stopped = continued(folder, config, "stopped", log="on", **settings)
    assert train_command(stopped, reporter=Recorder(signal_at=7)).exit_code == 75
    unwatched = continued(folder, config, "stopped", log="off", **settings)
    assert train_command(unwatched, reporter=Recorder()).exit_code == 0
    models = [load_model(folder / name).fingerprint for name in ("whole", "stopped")]
    assert models[0] == models[1]
    watched = [row["copy_distance_mlp"] for row in rows(folder / "stopped")]
    assert watched[0] and not watched[-1]
    plain = continued(folder, config, "plain", state="grow")
    assert train_command(plain, reporter=Recorder()).exit_code == 0

    def moved(name):
        start, end = load_model(folder / "large").params, load_model(folder / name).params
        kernel = "layers/mlp/up/kernel"
        return float(np.abs(flatten(end)[kernel] - flatten(start)[kernel]).sum())

    assert moved("whole") < 0.8 * moved("plain")


def test_a_run_of_an_older_version_lacks_new_settings(grown):
    folder, config = grown
    file = folder / "small" / "config.yaml"
    stored = yaml.safe_load(file.read_text())
    del stored["optimizer"]["rate_scale"], stored["optimizer"]["state"]
    file.write_text(yaml.safe_dump(stored))
    reporter = Recorder()
    assert train_command(config, reporter=reporter).exit_code == 0
    assert any("finished before" in line for line in reporter.notes)
