"""`b2b dry-run`: what it prints, on eight pretended devices and for machines by name."""

import dataclasses
import os
import subprocess
import sys
from pathlib import Path

import jax
import needs
import pytest
import yaml

from b2b_jax.commands import dry_run as commands
from b2b_jax.commands.topology import Topology, parse_topology, prepare_compilers
from b2b_jax.models import Compute, ConfigError, preset
from b2b_jax.report.chips import Chip
from b2b_jax.train.config import RunConfig, TrainConfig
from b2b_jax.train.optim import OptimizerConfig

ROOT = Path(__file__).resolve().parents[1]
COMMAND = "import sys; from b2b_jax.cli import main; sys.exit(main(sys.argv[1:]))"


@pytest.mark.parametrize(
    ("text", "name", "devices"),
    [
        ("v5p:8x8x8", "v5p:8x8x8", 512),
        ("v5p-512", "v5p:4x8x8", 256),
        ("v5p-128", "v5p:4x4x4", 64),
        ("v5e-16", "v5e:4x4", 16),
        ("v6e-256", "v6e:16x16", 256),
        ("v6e-8", "v6e:2x4", 8),
        ("v5p-8", "v5p:2x2x1", 4),
        ("h100:8", "h100", 8),
        ("h100:16", "h100", 16),
        ("h200:4x8", "h200", 32),
    ],
)
def test_machines_are_known_by_shape_and_by_type(text, name, devices):
    found = parse_topology(text)
    assert (found.name, found.num_devices) == (name, devices)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "v5p",
        "v5p:",
        "v5p:0x4",
        "v5p-129",
        "v5e-2",
        "v5e-4x4",
        "h100:9",
        "h100:2x2x8",
        "h100-pcie:8",
    ],
)
def test_other_machines_are_refused_with_those_that_are_known(text):
    with pytest.raises(ConfigError, match=r"^topology"):
        parse_topology(text)


def test_compilers_keep_what_the_user_has_set(monkeypatch):
    monkeypatch.setenv("TPU_ACCELERATOR_TYPE", "v5p-8")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    for name in ("TPU_SKIP_MDS_QUERY", "TPU_WORKER_HOSTNAMES", "ALLOW_MULTIPLE_LIBTPU_LOAD"):
        monkeypatch.setenv(name, "taken back after the test")
        monkeypatch.delenv(name)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=x")
    prepare_compilers(parse_topology("v5e-16"))
    assert os.environ["TPU_ACCELERATOR_TYPE"] == "v5p-8"
    assert os.environ["TPU_SKIP_MDS_QUERY"] == "1"
    assert os.environ["XLA_FLAGS"] == "--xla_dump_to=x"
    prepare_compilers(parse_topology("h100:8"))
    assert os.environ["XLA_FLAGS"] == "--xla_gpu_autotune_level=0 --xla_dump_to=x"


def dry_run(tmp_path: Path, *words: str, devices: int = 8) -> subprocess.CompletedProcess[str]:
    config = {
        "run_dir": "nowhere",
        "model": {
            "preset": "bert-tiny",
            "vocab_size": 512,
            "hidden_size": 32,
            "num_attention_heads": 4,
            "intermediate_size": 64,
        },
        "train": {"steps": 40, "batch_size": 16, "sequence_length": 16, "masked_positions": 3},
        "optimizer": {"warmup_steps": 4},
        "two_stage": {"steps": 10, "layers_per_block": 2},
    }
    path = tmp_path / "run.yaml"
    path.write_text(yaml.safe_dump(config))
    flags = os.environ.get("XLA_FLAGS", "")
    environment = os.environ | {
        "XLA_FLAGS": f"{flags} --xla_force_host_platform_device_count={devices}",
        "JAX_PLATFORMS": "cpu",
        "COLUMNS": "200",
    }
    return subprocess.run(
        [sys.executable, "-c", COMMAND, "dry-run", str(path), *words],
        env=environment,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=300,
    )


@pytest.mark.slow
def test_every_step_is_compiled_and_its_exchanges_are_listed(tmp_path):
    run = dry_run(tmp_path, "--mesh.preset", "fsdp")
    assert run.returncode == 0, run.stderr
    for words in (
        "data 1, fsdp 8, tensor 1 on 8 x cpu",
        "bottom 2, top 2 trained",
        "whole model",
        "all-gather of 8",
        "times all parameters in float32",
    ):
        assert words in run.stdout, run.stdout
    assert not (tmp_path / "nowhere").exists()
    copies = dry_run(tmp_path, "--mesh.preset", "dp")
    assert "no parameter has to be gathered" in copies.stdout and "all-reduce of 8" in copies.stdout


@pytest.mark.slow
def test_a_mesh_that_does_not_fit_ends_in_a_message(tmp_path):
    run = dry_run(tmp_path, "--mesh.tensor", "8")
    assert run.returncode == 1
    assert "heads 4 is not divisible by tensor 8" in run.stderr and "Traceback" not in run.stderr
    assert "Of 8 devices these meshes do: data=2, fsdp=1, tensor=4" in run.stderr
    run = dry_run(tmp_path, "--mesh.data", "3")
    assert "data=3, fsdp=1, tensor=1 does not fit 8 devices" in run.stderr


class Notes:
    """A reporter that keeps what it is told."""

    def __init__(self) -> None:
        self.text = ""

    def note(self, text: str) -> None:
        self.text += f"{text}\n"

    def update(self, done: int, total: int, *, text: str, seconds_left: float | None) -> None:
        pass

    def close(self) -> None:
        pass


def peak_of(text: str) -> float:
    """Mebibytes that a remedy needs."""
    size, unit = text.split(": ")[-1].split(" at most")[0].split()
    return float(size) * {"KiB": 1 / 1024, "MiB": 1, "GiB": 1024}[unit]


@pytest.mark.slow
def test_what_does_not_fit_is_made_to_by_flags_that_do_it(monkeypatch):
    """A chip of too little memory for the run, which micro-batches bring below it."""
    model = preset("bert-tiny").replace(vocab_size=512)
    train = TrainConfig(steps=4, batch_size=64, sequence_length=64, masked_positions=8)
    optimizer = OptimizerConfig(warmup_steps=0)
    config = RunConfig(run_dir="nowhere", model=model, train=train, optimizer=optimizer)
    monkeypatch.setattr(commands, "topology_devices", lambda topology: jax.devices()[:1])

    def machine(mebibytes: float) -> Topology:
        chip = Chip("small", ("tpu small",), 1e12, mebibytes * 2**20 / 0.95, 1e12, 1e12)
        return Topology("small:1", chip, (1,))

    def run(config: RunConfig, mebibytes: float) -> tuple[int, str]:
        notes = Notes()
        return commands.dry_run_command(
            config, topology=machine(mebibytes), reporter=notes
        ), notes.text

    assert run(config, 4000)[0] == 0
    code, said = run(config, 24)
    assert code == 1 and "whole model: needs" in said
    flags = said.split("it fits with ")[1].split(":")[0].split()
    assert "--compute.remat" in flags and "--train.micro_batches" in flags
    assert peak_of(said) <= 24
    # The very flags, given to the same run.
    values = dict(zip(flags[::2], flags[1::2], strict=True))
    fitting = dataclasses.replace(
        config,
        compute=Compute(remat=values["--compute.remat"]),
        train=dataclasses.replace(train, micro_batches=int(values["--train.micro_batches"])),
    )
    assert run(fitting, 24)[0] == 0
    code, said = run(config, 1)
    assert code == 1 and "none of these made it fit: --mesh.data 1 --mesh.fsdp -1; " in said


@pytest.mark.slow
@needs.LIBTPU
def test_a_tpu_that_is_not_here_is_compiled_for(tmp_path):
    run = dry_run(tmp_path, "--topology", "v5e-4", "--mesh.preset", "fsdp", devices=1)
    assert run.returncode == 0, run.stderr
    assert "fsdp 4, tensor 1 on 4 x v5e:2x2" in run.stdout
    assert "tokens/s at most" in run.stdout
