"""Where things lie on a mesh, and that it changes no number: presets, processes, growth."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from jobs import Job, finished
from train_support import Setup, config

from b2b_jax.axes import Axes
from b2b_jax.train.sharding import (
    MeshConfig,
    ShardingError,
    make_mesh,
    mesh_shape,
    param_shardings,
    param_spec,
)

WORKER = Path(__file__).with_name("sharded_steps.py")
AXES = ("data", "fsdp", "tensor")


def abstract(*shape: int) -> jax.sharding.AbstractMesh:
    return jax.sharding.AbstractMesh(shape, AXES)


def test_parameters_are_sharded_by_name():
    setup = Setup(config(vocab_size=72))
    found = param_shardings(setup.model.axes, setup.model.shapes, mesh=abstract(2, 4, 1))
    specs = {path: tuple(sharding.spec) for path, sharding in found.items()}
    assert specs["layers/attention/query/kernel"] == (None, "fsdp", "tensor", None)
    assert specs["layers/attention/query/bias"] == (None, "tensor", None)
    assert specs["layers/attention/out/kernel"] == (None, "tensor", None, "fsdp")
    assert specs["layers/mlp/up/kernel"] == (None, "fsdp", "tensor")
    assert specs["layers/mlp/down/kernel"] == (None, "tensor", "fsdp")
    assert specs["mlm/transform/kernel"] == ("fsdp", None)
    assert specs["embeddings/token/embedding"] == ("tensor", "fsdp")
    assert specs["mlm/decoder/bias"] == ("tensor",)


def test_vectors_of_the_residual_stream_stay_whole():
    assert tuple(param_spec(Axes.parse("norm_scale: layers | -> embed"))) == (None, None)
    assert tuple(param_spec(Axes.parse("bias: layers | -> embed"))) == (None, None)


@pytest.mark.parametrize(
    ("mesh", "devices", "shape"),
    [
        (MeshConfig(), 8, (8, 1, 1)),
        (MeshConfig(preset="fsdp"), 8, (1, 8, 1)),
        (MeshConfig(preset="fsdp", data=2), 8, (2, 4, 1)),
        (MeshConfig(preset="fsdp_tp"), 8, (1, 2, 4)),
        (MeshConfig(preset="fsdp_tp", tensor=2), 8, (1, 4, 2)),
        (MeshConfig(fsdp=4), 8, (2, 4, 1)),
    ],
)
def test_presets_leave_the_rest_to_one_axis(mesh, devices, shape):
    assert mesh_shape(mesh, devices) == shape


@pytest.mark.parametrize(
    ("mesh", "message"),
    [
        (MeshConfig(data=3), "data=3, fsdp=1, tensor=1 does not fit 8 devices"),
        (MeshConfig(fsdp=-1), "expected -1 at most once"),
        (MeshConfig(tensor=-2), "mesh.tensor: found -2"),
        (MeshConfig(tensor=3), "does not fit 8 devices"),
    ],
)
def test_mesh_sizes_must_fit_the_devices(mesh, message):
    with pytest.raises(ShardingError, match=message):
        mesh_shape(mesh, 8)


@pytest.mark.parametrize(
    ("sizes", "messages"),
    [
        (
            (1, 16, 1),
            [
                "embeddings/token/embedding: embed 24 is not divisible by fsdp 16",
                "layers/mlp/up/kernel",
                "Of 16 devices these meshes do: data=2, fsdp=8, tensor=1",
            ],
        ),
        (
            (1, 2, 4),
            [
                "layers/attention/query/kernel: heads 3 is not divisible by tensor 4",
                "embeddings/token/embedding: vocab 71 is not divisible by tensor 4",
                "set model.vocab_size to 72",
            ],
        ),
    ],
)
def test_a_mesh_that_does_not_divide_names_all_parameters_and_what_would_do(sizes, messages):
    setup = Setup(config())
    with pytest.raises(ShardingError) as error:
        param_shardings(setup.model.axes, setup.model.shapes, mesh=abstract(*sizes))
    for message in messages:
        assert message in str(error.value)


def test_a_mesh_uses_all_devices_of_the_process():
    assert make_mesh(MeshConfig()).shape == {"data": jax.device_count(), "fsdp": 1, "tensor": 1}


class Chip(SimpleNamespace):
    """A TPU that is not here."""

    __hash__ = object.__hash__


def chips(kind: str, sides: tuple[int, int, int], *, slices: int) -> list[Chip]:
    places = [(index, (x, y, z)) for index in range(slices) for z, y, x in np.ndindex(sides[::-1])]
    return [
        Chip(
            id=number,
            platform="tpu",
            device_kind=kind,
            coords=coords,
            core_on_chip=0,
            slice_index=index,
            process_index=number // 4,
        )
        for number, (index, coords) in enumerate(places)
    ]


@pytest.mark.parametrize(
    ("kind", "sides"),
    [("TPU v5 lite", (4, 4, 1)), ("TPU v5 lite", (2, 2, 1)), ("TPU v5p", (2, 2, 1))],
)
def test_only_data_crosses_slices_of_tpus(kind, sides):
    devices = chips(kind, sides, slices=2)
    mesh = make_mesh(MeshConfig(preset="fsdp", data=4), devices=devices)
    assert dict(mesh.shape) == {"data": 4, "fsdp": len(devices) // 4, "tensor": 1}
    for row in mesh.devices:
        assert len({device.slice_index for device in row.flat}) == 1
    with pytest.raises(ShardingError, match=r"2 slices of TPUs.*mesh\.data to a multiple of 2"):
        make_mesh(MeshConfig(preset="fsdp"), devices=devices)


def numbers(folder: Path, mesh: MeshConfig, *, devices: int, processes: int = 1):
    """Losses, gradients, grown and trained parameters, and shares, of a few steps on a mesh."""
    name = f"{mesh.preset}-{devices}-{processes}"
    sizes = {axis: getattr(mesh, axis) for axis in ("preset", *AXES)}
    words = [sys.executable, str(WORKER), str(devices // processes), json.dumps(sizes)]
    out = folder / f"{name}.npz"
    # No process is meant to die here, so a machine that is busy elsewhere is given time.
    command = [*words, str(out)]
    finished(lambda: Job(command, output=folder / name, processes=processes, heartbeat=600))
    with np.load(out) as file:
        return dict(file)


@pytest.fixture(scope="module")
def one_device(tmp_path_factory):
    return numbers(tmp_path_factory.mktemp("one"), MeshConfig(), devices=1)


def assert_same(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.startswith("grown/"):
            np.testing.assert_array_equal(found[name], value, err_msg=name)
        elif name.startswith("share/"):
            continue
        else:
            np.testing.assert_allclose(found[name], value, rtol=2e-4, atol=2e-5, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("mesh", "share"),
    [
        (MeshConfig(), 1),
        (MeshConfig(preset="fsdp"), 1 / 8),
        (MeshConfig(preset="fsdp_tp"), 1 / 8),
        (MeshConfig(preset="fsdp_tp", data=2, fsdp=2, tensor=2), 1 / 4),
    ],
)
def test_eight_devices_give_the_numbers_of_one(one_device, tmp_path, mesh, share):
    eight = numbers(tmp_path, mesh, devices=8)
    assert_same(eight, one_device)
    assert eight["share/layers/mlp/up/kernel"] == share
    assert eight["share/moment"] == share


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
@pytest.mark.parametrize("preset", ["dp", "fsdp", "fsdp_tp"])
def test_processes_give_the_numbers_of_one(one_device, tmp_path, preset, processes):
    mesh = MeshConfig(preset=preset)
    several = numbers(tmp_path, mesh, devices=8, processes=processes)
    assert_same(several, one_device)
