"""Attention of training steps: no padding, and kernels on meshes and on machines by name."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import needs
import pytest
from train_support import TOKENIZER, Setup, config, tokens

from b2b_jax.models import Compute, ConfigError, layers
from b2b_jax.train.config import RunConfig, TrainConfig
from b2b_jax.train.programs import Programs
from b2b_jax.train.stages import full_model

WORKER = Path(__file__).with_name("attention_steps.py")


@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_training_has_no_padding_to_mask(monkeypatch, family):
    masks = []

    def attend(q, k, v, mask, **how):
        masks.append(mask)
        return q

    monkeypatch.setattr(layers, "attend", attend)
    setup = Setup(config(family))
    jax.eval_shape(setup.step(full_model(4)), setup.state(), tokens())
    assert masks and all(mask is None for mask in masks)


def run_config(**changes) -> RunConfig:
    train = TrainConfig(batch_size=8, sequence_length=12, masked_positions=3)
    return RunConfig(run_dir="-", model=config(), train=train, compute=Compute(**changes))


def test_a_kernel_is_refused_before_anything_is_compiled():
    assert Programs(run_config(), TOKENIZER).model.compute.attention == "xla"
    with pytest.raises(ConfigError, match="which is for NVIDIA GPUs since Ampere, on cpu"):
        Programs(run_config(attention="cudnn", dtype="bfloat16"), TOKENIZER)


def test_shapes_that_a_kernel_cannot_take_are_mistakes_of_the_configuration():
    found = "\n".join(run_config(attention="splash").problems())
    assert "found 'splash' for sequences of 12 tokens, expected a multiple of 128" in found
    found = "\n".join(run_config(attention="cudnn").problems())
    assert "found 'cudnn' with compute.dtype 'float32', expected 'bfloat16'" in found
    assert not run_config().problems()


def worker(*words: str) -> dict:
    root = Path(__file__).parents[2]
    path = os.pathsep.join([str(root), str(root / "tests" / "train"), *sys.path])
    run = subprocess.run(
        [sys.executable, str(WORKER), *words],
        env=os.environ | {"PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert run.returncode == 0, run.stderr
    return json.loads(run.stdout.splitlines()[-1])


@pytest.mark.slow
def test_every_device_of_a_mesh_runs_splash_on_its_own_heads_and_sequences():
    errors = worker("mesh", json.dumps({"data": 2, "fsdp": 2, "tensor": 2}))
    assert "layers/attention/query/kernel" in errors
    assert max(errors.values()) < 2e-5, errors


BASE = {
    "preset": "bert-base",
    "train": {"batch_size": 256, "sequence_length": 512, "masked_positions": 80},
    "mesh": {"preset": "fsdp"},
}
SMALL = {
    "train": {"batch_size": 32, "sequence_length": 256},
    "mesh": {"preset": "fsdp_tp"},
}
LONG = {"batch_size": 8, "sequence_length": 1024}  # two blocks


@needs.LIBTPU
@pytest.mark.slow
def test_splash_is_compiled_for_tpus_and_saves_memory():
    found = worker("tpu", "v5e:4x4", json.dumps(BASE))
    assert found["kernel"] == "splash"
    assert found["custom calls"] == 2  # forward, and all gradients in one
    plain = worker("tpu", "v5e:4x4", json.dumps(BASE | {"compute": {"attention": "xla"}}))
    assert plain["kernel"] == "xla" and plain["custom calls"] == 0
    assert found["temporary bytes"] < 0.9 * plain["temporary bytes"]


@needs.LIBTPU
@pytest.mark.slow
@pytest.mark.parametrize(
    ("topology", "changes", "calls"),
    [
        ("v5e:4x4", {"preset": "bert-tiny"}, 2),
        ("v5p:2x2x1", {"preset": "gpt2-tiny", "compute": {"remat": "full"}}, 3),
        ("v6e:2x2", {"preset": "gpt2-tiny", "train": LONG}, 3),
    ],
)
def test_splash_is_compiled_for_heads_on_several_devices(topology, changes, calls):
    run = SMALL | {"model": {"max_position_embeddings": 1024}} | changes
    found = worker("tpu", topology, json.dumps(run))
    assert (found["kernel"], found["custom calls"]) == ("splash", calls)
