"""The launch files: short, well-formed, and what they execute is executed with stubs."""

import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import time
from pathlib import Path

import needs
import pytest
import yaml
from runs import STEPS, tiny_run

from b2b_jax.config import load_run_config
from b2b_jax.train.saved import read_meta

ROOT = Path(__file__).resolve().parents[1]
LAUNCH = ROOT / "launch"
FLAGS = LAUNCH / "xla_flags.sh"
SCRIPTS = sorted(set(LAUNCH.glob("*.sh")) - {FLAGS})
SHELLCHECK = shutil.which("shellcheck")


@pytest.mark.parametrize("path", sorted(LAUNCH.iterdir()), ids=lambda path: path.name)
def test_launch_files_are_short_and_say_how_they_are_called(path):
    lines = path.read_text().splitlines()
    assert len(lines) <= 60
    assert any(line.startswith("#") and f"launch/{path.name}" in line for line in lines[:8])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_executable_and_parse(path):
    assert path.stat().st_mode & stat.S_IXUSR
    assert "set -euo pipefail" in path.read_text()
    run = subprocess.run(["bash", "-n", str(path)], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


@pytest.mark.skipif(SHELLCHECK is None, reason="needs shellcheck")
@pytest.mark.parametrize("path", [*SCRIPTS, FLAGS], ids=lambda path: path.name)
def test_scripts_pass_shellcheck(path):
    run = subprocess.run(
        [str(SHELLCHECK), "-x", str(path)], cwd=ROOT, capture_output=True, text=True
    )
    assert run.returncode == 0, run.stdout


def sourced(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """What a strict shell has after it has read the flags."""
    script = f'set -euo pipefail; source "$0" {" ".join(words)}; env'
    return subprocess.run(
        ["bash", "-c", script, str(FLAGS)],
        env={"PATH": os.environ["PATH"]} | environment,
        capture_output=True,
        text=True,
    )


@pytest.mark.parametrize(
    ("accelerator", "name"), [("gpu", "XLA_FLAGS"), ("tpu", "LIBTPU_INIT_ARGS")]
)
def test_flags_come_before_those_of_the_user(accelerator, name):
    run = sourced(accelerator, **{name: "--mine=1"})
    (line,) = (line for line in run.stdout.splitlines() if line.startswith(f"{name}="))
    assert line.startswith(f"{name}=--xla_") and line.endswith(" --mine=1")


def test_flags_are_for_a_named_accelerator():
    run = sourced("cpu")
    assert run.returncode == 2 and "found 'cpu', expected gpu or tpu" in run.stderr
    assert sourced().returncode != 0


def flags_of(accelerator: str, name: str) -> str:
    lines = sourced(accelerator).stdout.splitlines()
    return next(line.removeprefix(f"{name}=") for line in lines if line.startswith(f"{name}="))


@pytest.mark.parametrize("more", ["", "--xla_gpu_no_such_flag=true"])
def test_this_jax_knows_every_flag_for_gpus(more):
    """XLA ends the process at a flag that it does not know, on every machine."""
    flags = f"{flags_of('gpu', 'XLA_FLAGS')} {more}"
    run = subprocess.run(
        [sys.executable, "-c", "import jax; jax.numpy.zeros(1)"],
        env=os.environ | {"XLA_FLAGS": flags, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
    )
    assert (run.returncode == 0) == (not more), run.stderr


@needs.LIBTPU
@pytest.mark.parametrize("more", ["", "--xla_tpu_no_such_flag=true"])
def test_this_libtpu_knows_every_flag_for_tpus(more):
    script = (
        "from b2b_jax.commands.topology import *; machine = parse_topology('v5e:2x2'); "
        "prepare_compilers(machine); topology_devices(machine)"
    )
    run = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"LIBTPU_INIT_ARGS": f"{flags_of('tpu', 'LIBTPU_INIT_ARGS')} {more}"},
        capture_output=True,
        text=True,
    )
    assert (run.returncode == 0) == (not more), run.stderr


def test_the_sky_task_is_whole():
    task = yaml.safe_load((LAUNCH / "skypilot.yaml").read_text())
    assert {"resources", "num_nodes", "setup", "run", "envs", "file_mounts", "workdir"} <= set(task)
    assert task["resources"]["job_recovery"]["max_restarts_on_errors"] > 0
    assert (ROOT / task["envs"]["CONFIG"]).exists()
    for part in ("setup", "run"):
        run = subprocess.run(["bash", "-n"], input=task[part], capture_output=True, text=True)
        assert run.returncode == 0, run.stderr


@pytest.mark.parametrize(
    "path", sorted((ROOT / "configs" / "pretrain").glob("[!c]*.yaml")), ids=lambda path: path.name
)
def test_pretraining_configs_can_be_run(path):
    config = load_run_config(path)
    assert config.compute.dtype == "bfloat16" and config.mesh.preset == "fsdp"


def write_stub(folder: Path, name: str, body: str) -> None:
    path = folder / name
    path.write_text(f"#!{sys.executable}\n{body}")
    path.chmod(0o755)


def with_stubs(folder: Path, **more: str) -> dict[str, str]:
    path = f"{folder}:{Path(sys.executable).parent}:{os.environ['PATH']}"
    return os.environ | {"PATH": path, "JAX_PLATFORMS": "cpu"} | more


def run_config(folder: Path, name: str) -> Path:
    config = tiny_run(folder, name)
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump(json.loads(json.dumps(config.to_dict()))))
    return path


# What a real srun sets for its tasks, of which there are two here, on one device each.
SRUN = """
import os, subprocess, sys, time
words = [word for word in sys.argv[1:] if not word.startswith("--kill") and word[:6] != "--wait"]
tasks = []
for index in range(2):
    task = {
        "SLURM_JOB_ID": os.environ["SLURM_JOB_ID"], "SLURM_STEP_NODELIST": "127.0.0.1",
        "SLURM_STEP_NUM_NODES": "1", "SLURM_NTASKS": "2", "SLURM_STEP_NUM_TASKS": "2",
        "SLURM_PROCID": str(index), "SLURM_LOCALID": str(index),
    }
    tasks.append(subprocess.Popen(words, env=os.environ | task))
if os.environ.get("STUB_SIGNAL_AFTER"):
    import pathlib
    log = pathlib.Path(os.environ["STUB_LOG"])
    while os.environ["STUB_SIGNAL_AFTER"] not in log.read_text():
        time.sleep(0.05)
    if os.environ.get("STUB_KILLS"):
        tasks[1].kill()
    else:
        for task in tasks:
            task.terminate()
codes = [task.wait() for task in tasks]
sys.exit(max(code if code >= 0 else 128 - code for code in codes))
"""


@pytest.mark.slow
def test_slurm_trains_in_two_tasks_and_queues_itself_again_when_stopped_or_killed(tmp_path):
    stubs = tmp_path / "stubs"
    stubs.mkdir()
    write_stub(stubs, "srun", SRUN)
    requeued = tmp_path / "requeued"
    write_stub(stubs, "scontrol", f"import sys; open({str(requeued)!r}, 'w').write(str(sys.argv))")
    config, log = run_config(tmp_path, "slurm"), tmp_path / "log.txt"
    environment = with_stubs(
        stubs,
        SLURM_JOB_ID=str(os.getpid()),
        B2B_VENV=str(Path(sys.executable).parent.parent),
        STUB_LOG=str(log),
        B2B_JAX_HEARTBEAT_SECONDS="10",
    )

    def job(**more: str) -> int:
        with log.open("a") as file:
            return subprocess.run(
                [str(LAUNCH / "slurm.sh"), str(config)],
                env=environment | more,
                stdout=file,
                stderr=file,
                timeout=300,
                cwd=tmp_path,
            ).returncode

    assert job(STUB_SIGNAL_AFTER="train  ", STUB_KILLS="1", SLURM_RESTART_COUNT="20") == 137
    assert not requeued.exists()  # it has been started often enough
    log.unlink()
    for how, code in (({"STUB_KILLS": "1"}, 137), ({}, 75)):
        assert job(STUB_SIGNAL_AFTER="train  ", **how) == code, log.read_text()
        assert "'requeue'" in requeued.read_text()
        requeued.unlink()
        log.unlink()
    assert job() == 0, log.read_text()
    assert not requeued.exists()
    assert "continues from the checkpoint" in log.read_text()
    assert read_meta(tmp_path / "slurm")["step"] == STEPS


# Copies the clone, and runs what is to run on all workers in two local folders.
GCLOUD = """
import os, pathlib, shutil, subprocess, sys
words, hosts = sys.argv[1:], pathlib.Path(os.environ["STUB_HOSTS"])
verb = words[3]
with (hosts / "calls.txt").open("a") as file:
    print(verb, file=file)
if verb == "ssh":
    worker, command = words[words.index("--worker") + 1], words[words.index("--command") + 1]
    for index in range(2) if worker == "all" else [int(worker)]:
        home = hosts / str(index)
        (home / "b2b_jax" / ".venv" / "bin").mkdir(parents=True, exist_ok=True)
        if not (home / "b2b_jax" / "launch").exists():
            (home / "b2b_jax" / "launch").symlink_to(os.environ["STUB_LAUNCH"])
        there = home / "b2b_jax" / ".venv" / "bin" / "b2b"
        if not there.exists():
            there.symlink_to(os.environ["STUB_B2B"])
        host = {}
        if "B2B_JAX_JOIN=auto" in command:  # what JAX then asks the machine for
            host = {
                "JAX_COORDINATOR_ADDRESS": os.environ["STUB_COORDINATOR"],
                "JAX_NUM_PROCESSES": "2", "JAX_PROCESS_ID": str(index),
            }
        subprocess.run(["bash", "-c", command], cwd=home, env=os.environ | host, check=True)
"""


@pytest.mark.slow
def test_the_tpu_script_trains_on_every_host(tmp_path):
    stubs, hosts = tmp_path / "stubs", tmp_path / "hosts"
    stubs.mkdir()
    hosts.mkdir()
    write_stub(stubs, "gcloud", GCLOUD)
    config = run_config(tmp_path, "tpu")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    environment = with_stubs(
        stubs,
        NAME="slice",
        ZONE="here",
        STUB_HOSTS=str(hosts),
        STUB_LAUNCH=str(LAUNCH),
        STUB_B2B=str(Path(sys.executable).parent / "b2b"),
        STUB_COORDINATOR=f"127.0.0.1:{port}",
    )

    def tpu(*words: str) -> None:
        run = subprocess.run(
            [str(LAUNCH / "tpu_vm.sh"), *words], env=environment, capture_output=True, text=True
        )
        assert run.returncode == 0, run.stderr

    tpu("create")
    tpu("train", str(config), "--log.tensorboard", "off")
    log = hosts / "0" / "b2b_jax" / "b2b.log"

    def said() -> str:
        return log.read_text() if log.exists() else ""

    assert "finished at step" not in said()  # it has not been waited for
    limit = time.monotonic() + 300
    while "finished at step" not in said():
        assert time.monotonic() < limit, said()
        time.sleep(0.2)
    assert "2 x cpu (data 2," in said()  # the two hosts have found each other
    assert read_meta(tmp_path / "tpu")["step"] == STEPS
    tpu("delete")
    assert (hosts / "calls.txt").read_text().split() == ["create", "ssh", "delete"]
    usage = subprocess.run(
        [str(LAUNCH / "tpu_vm.sh"), "start"], env=environment, capture_output=True, text=True
    )
    assert usage.returncode == 2 and "usage:" in usage.stderr


def test_missing_settings_are_asked_for(tmp_path):
    environment = {"PATH": os.environ["PATH"]}
    for script, name in (("tpu_vm.sh", "NAME"), ("gke_xpk.sh", "CLUSTER")):
        run = subprocess.run(
            [str(LAUNCH / script), "create"], env=environment, capture_output=True, text=True
        )
        assert run.returncode != 0 and name in run.stderr


def test_xpk_gets_the_command_with_its_words_intact(tmp_path):
    write_stub(tmp_path, "xpk", "import json, sys; print(json.dumps(sys.argv[1:]))")
    settings = {"CLUSTER": "c", "PROJECT": "p", "ZONE": "z", "IMAGE": "i", "RUNS": "disk"}
    run = subprocess.run(
        [str(LAUNCH / "gke_xpk.sh"), "a b.yaml", "--train.steps", "5"],
        env=with_stubs(tmp_path, **settings),
        capture_output=True,
        text=True,
    )
    words = json.loads(run.stdout)
    assert words[:2] == ["workload", "create"]
    assert words[words.index("--command") + 1].split() == [
        "b2b", "train", "a\\", "b.yaml", "--train.steps", "5",
    ]  # fmt: skip
    assert words[words.index("--docker-image") + 1] == "i"
    assert words[words.index("--storage") + 1] == "disk"
    # XPK would take 75, of a run that was stopped or lost a host, for a failure.
    assert words[words.index("--restart-on-exit-codes") + 1] == "75"
    assert words[words.index("--env") + 1].startswith("LIBTPU_INIT_ARGS=--xla_")
