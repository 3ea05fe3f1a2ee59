"""A checkpoint moves to another mesh, preset or number of processes, and so does a growth."""

import dataclasses
import shutil
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from jobs import Job, finished, losses, train_all, write_config
from runs import tiny_run

from b2b_jax.cli import main
from b2b_jax.growth import GrowthPlan, grow
from b2b_jax.train.checkpoint import finished_steps
from b2b_jax.train.config import CheckpointConfig
from b2b_jax.train.saved import load_model
from b2b_jax.tree import flatten

WORKER = Path(__file__).with_name("restored_state.py")
DP = ("--mesh.preset", "dp")
FSDP = ("--mesh.preset", "fsdp")
FSDP_TP = ("--mesh.preset", "fsdp_tp")
MIXED = ("--mesh.data", "2", "--mesh.fsdp", "2", "--mesh.tensor", "2")
EMBED, MLP = 16, 32


def config_of(folder: Path, name: str) -> tuple[Path, str]:
    """A run of twelve steps that divides by eight devices and keeps its checkpoints 4, 8 and 12."""
    plain = tiny_run(folder, name)
    return write_config(
        folder,
        name,
        model=plain.model.replace(num_attention_heads=4, intermediate_size=MLP),
        train=dataclasses.replace(plain.train, batch_size=8),
        # Far above the rounding that Adam would else divide by itself.
        optimizer=dataclasses.replace(plain.optimizer, adam_eps=1e-5),
        checkpoint=CheckpointConfig(every_steps=4, every_minutes=0.0, keep_last=3, keep_best=0),
    )


@pytest.fixture(scope="module")
def on_one_mesh(tmp_path_factory):
    """A run on eight devices, each with all parameters."""
    folder = tmp_path_factory.mktemp("moves")
    path, run_dir = config_of(folder, "dp")
    train_all(path, *DP, processes=1, devices=8)
    return folder, path, run_dir


def restored(path: Path, step: int, *words: str, devices: int, processes: int = 1):
    """A checkpoint as a mesh of so many devices in all reads it, and what comes next."""
    out = path.with_name(f"{path.stem}-{step}-{'-'.join(words)}-{devices}-{processes}.npz")
    command = [sys.executable, str(WORKER), str(devices // processes), str(path), str(step)]
    command = [*command, str(out), *words]
    finished(lambda: Job(command, output=out, processes=processes, heartbeat=600))
    with np.load(out) as file:
        return dict(file)


def assert_moved(found, expected) -> None:
    """The same state and batches to the bit, the same losses to rounding."""
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.startswith("loss/"):
            np.testing.assert_allclose(found[name], value, rtol=1e-5, err_msg=name)
        elif name != "shard":
            np.testing.assert_array_equal(found[name], value, err_msg=name)


def go_back(path: Path, run_dir: str, *, to: Path, step: int) -> tuple[Path, str]:
    """A copy of a run as it was when some checkpoint was its newest."""
    target = to.with_suffix("")
    shutil.copytree(run_dir, target)
    to.write_text(path.read_text().replace(f"run_dir: {run_dir}\n", f"run_dir: {target}\n"))
    for later in finished_steps(target):
        if later > step:
            shutil.rmtree(target / "checkpoints" / str(later))
    return to, str(target)


@pytest.mark.slow
def test_presets_and_meshes_read_each_other(on_one_mesh):
    folder, path, run_dir = on_one_mesh
    first = restored(path, 4, *DP, devices=8)
    assert first["position"] == 4
    for words, devices, processes, shard in (
        (FSDP, 8, 1, (2, EMBED // 8, MLP)),
        (FSDP_TP, 8, 1, (2, EMBED // 2, MLP // 4)),
        (MIXED, 8, 1, (2, EMBED // 2, MLP // 2)),
        (DP, 1, 1, (2, EMBED, MLP)),
        (FSDP, 2, 2, (2, EMBED // 2, MLP)),
    ):
        found = restored(path, 4, *words, devices=devices, processes=processes)
        assert tuple(found["shard"]) == shard
        assert_moved(found, first)
    # dp wrote step 4, fsdp goes on from it and writes step 8, fsdp_tp goes on from that.
    moved, moved_dir = go_back(path, run_dir, to=folder / "moved.yaml", step=4)
    job = train_all(moved, *FSDP, processes=1, devices=8)
    assert "continues from the checkpoint of step 4" in job.said()
    again, again_dir = go_back(moved, moved_dir, to=folder / "again.yaml", step=8)
    eighth = restored(again, 8, *FSDP, devices=8)
    assert eighth["position"] == 8
    assert_moved(restored(again, 8, *FSDP_TP, devices=8), eighth)
    assert_moved(restored(again, 8, *DP, devices=1), eighth)
    job = train_all(again, *FSDP_TP, processes=1, devices=8)
    assert "continues from the checkpoint of step 8" in job.said()
    np.testing.assert_allclose(losses(again_dir), losses(run_dir), rtol=1e-4)


@pytest.mark.slow
def test_one_process_becomes_two_and_one_again_and_what_they_wrote_grows(on_one_mesh):
    folder, path, run_dir = on_one_mesh
    two, two_dir = go_back(path, run_dir, to=folder / "two.yaml", step=4)
    job = train_all(two, *FSDP, processes=2, devices=2)
    assert "continues from the checkpoint of step 4" in job.said()
    one, one_dir = go_back(two, two_dir, to=folder / "one.yaml", step=8)
    by_two = restored(one, 8, *FSDP, devices=4, processes=2)
    assert_moved(restored(one, 8, *DP, devices=1), by_two)
    assert_moved(restored(one, 8, *FSDP_TP, devices=8), by_two)
    job = train_all(one, *DP, processes=1, devices=1)
    assert "continues from the checkpoint of step 8" in job.said()
    np.testing.assert_allclose(losses(one_dir), losses(run_dir), rtol=1e-4)

    # What two processes wrote in shards grows in one, as if one had written it.
    grown = folder / "grown"
    sizes = "hidden_size=32,num_attention_heads=8,intermediate_size=64"
    assert main(["grow", two_dir, str(grown), "--to", sizes, "--method", "aki"]) == 0
    plan = GrowthPlan.from_json((grown / "growth_plan.json").read_text())
    expected = flatten(jax.jit(grow, static_argnums=1)(load_model(two_dir).params, plan))
    for name, leaf in flatten(load_model(grown).params).items():
        np.testing.assert_array_equal(leaf, expected[name], err_msg=name)
    # And both numbers of processes start from it with the same loss.
    model = load_model(grown).config
    begun = []
    for processes, words in ((1, DP), (2, FSDP)):
        start, start_dir = write_config(
            folder, f"from-grown-{processes}", init=str(grown), model=model
        )
        train_all(start, *words, processes=processes)
        begun.append(losses(start_dir))
    np.testing.assert_allclose(begun[0], begun[1], rtol=1e-4)
    assert begun[0][0] == pytest.approx(losses(two_dir)[-1], rel=0.1)
