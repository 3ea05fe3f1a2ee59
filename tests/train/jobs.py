"""Several processes of one program over loopback, for the tests."""

import csv
import json
import os
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import yaml
from runs import tiny_run

from b2b_jax.train.config import RunConfig

TRAIN = """
import sys, jax
jax.config.update("jax_num_cpu_devices", int(sys.argv.pop(1)))
jax.config.update("jax_default_matmul_precision", "highest")
from b2b_jax.cli import main
from b2b_jax.train import lock
lock.PATIENCE = float(sys.argv.pop(1))
sys.exit(main(sys.argv[1:]))
"""
"""What a process of a training job runs; its first words are the number of its devices and how many
seconds it waits for the lock of a run."""
HEARTBEAT = 10
TIMEOUT = 1200
"""Seconds that a job may take, on a machine that others use as well."""
# Devices of a starved machine may come to an exchange minutes apart.
PATIENCE = " ".join(
    f"--xla_cpu_collective_{name}_timeout_seconds={TIMEOUT}"
    for name in ("call_terminate", "call_warn_stuck")
)


class Job:
    """Processes that find each other over loopback.

    Their port is held until they end. The system gives it to nobody else, and the coordinator may
    bind it, since gRPC asks for SO_REUSEPORT, as is done here.

    Args:
        words: the command of every process; "{process}" in them is its number.
        output: what they say goes to files whose names begin like this one's.
        processes: how many; one alone looks for no others.
        heartbeat: seconds after which a silent process counts as dead.
    """

    def __init__(
        self, words: Sequence[str], *, output: Path, processes: int = 2, heartbeat: int = HEARTBEAT
    ) -> None:
        self._port = socket.socket()
        self._port.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        self._port.bind(("127.0.0.1", 0))
        port = self._port.getsockname()[1]
        self.output = [output.with_name(f"{output.stem}-{index}.txt") for index in range(processes)]
        self.processes: list[subprocess.Popen[bytes]] = []
        for index, path in enumerate(self.output):
            environment = os.environ | {
                "JAX_PLATFORMS": "cpu",
                "XLA_FLAGS": f"{os.environ.get('XLA_FLAGS', '')} {PATIENCE}",
                "B2B_JAX_HEARTBEAT_SECONDS": str(heartbeat),
            }
            if processes > 1:
                environment |= {
                    "JAX_COORDINATOR_ADDRESS": f"127.0.0.1:{port}",
                    "JAX_NUM_PROCESSES": str(processes),
                    "JAX_PROCESS_ID": str(index),
                }
            with path.open("wb") as file:
                self.processes.append(
                    subprocess.Popen(
                        [word.replace("{process}", str(index)) for word in words],
                        env=environment,
                        stdout=file,
                        stderr=subprocess.STDOUT,
                    )
                )

    def kill(self) -> None:
        """End all that still run, at once."""
        for process in self.processes:
            process.kill()
        for process in self.processes:
            process.wait()
        self._port.close()

    def wait(self) -> list[int]:
        """Exit codes; nobody is left when this returns or raises."""
        limit = time.monotonic() + TIMEOUT
        try:
            return [
                process.wait(timeout=max(limit - time.monotonic(), 0)) for process in self.processes
            ]
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"after {TIMEOUT} s not at an end: {self.said()}") from error
        finally:
            self.kill()

    def wait_for(self, words: str) -> None:
        """Return when the first process has said something."""
        self.wait_until(lambda: words in self.output[0].read_text())

    def wait_until(self, is_so: Callable[[], bool]) -> None:
        """Return when something holds that the first process brings about."""
        limit = time.monotonic() + TIMEOUT
        while not is_so():
            if time.monotonic() > limit or self.processes[0].poll() is not None:
                self.kill()
                raise AssertionError(f"never came to it: {self.said()}")
            time.sleep(0.02)

    def said(self) -> str:
        """What all processes said."""
        return "\n---\n".join(path.read_text() for path in self.output)


STARVED = "Gloo context initialization failed: DEADLINE_EXCEEDED"
"""Gloo waits for the other processes for 30 s, which cannot be changed: a job then ends with 75."""


def finished(start: Callable[[], Job]) -> Job:
    """Let a job come to its end; one whose processes missed each other is started again.

    Args:
        start: starts all processes of the job.
    """
    for _ in range(3):
        job = start()
        codes = job.wait()
        if not any(codes):
            return job
        assert STARVED in job.said(), f"{codes}: {job.said()}"
    raise AssertionError(f"never came together: {job.said()}")


def train_job(
    config: Path, *words: str, processes: int = 2, devices: int = 2, patience: float = 120.0
) -> Job:
    """Start `b2b train` in some processes with so many devices each."""
    command = [sys.executable, "-c", TRAIN, str(devices), str(patience)]
    command += ["train", str(config), *words]
    return Job(command, output=config, processes=processes)


def train_all(config: Path, *words: str, processes: int = 2, devices: int = 2) -> Job:
    """Train in some processes to the end."""
    return finished(lambda: train_job(config, *words, processes=processes, devices=devices))


def write_config(folder: Path, name: str, **changes) -> tuple[Path, str]:
    """Write the YAML file of a tiny run; return it and the folder of the run."""
    run = tiny_run(folder, name, **changes)
    return write_yaml(run), run.run_dir


def write_yaml(run: RunConfig) -> Path:
    """Write the YAML file of a run beside its folder."""
    path = Path(f"{run.run_dir}.yaml")
    path.write_text(yaml.safe_dump(json.loads(json.dumps(run.to_dict()))))
    return path


def losses(run_dir: str) -> list[float]:
    """Held-out losses of a run, in order."""
    with open(Path(run_dir) / "metrics.csv", newline="") as file:
        return [float(row["heldout_loss"]) for row in csv.DictReader(file) if row["heldout_loss"]]


def command_line(words: list[str], log: str) -> None:
    """Be a process of the command line that writes to a file."""
    file = os.open(log, os.O_WRONLY | os.O_APPEND)
    os.dup2(file, 1)
    os.dup2(file, 2)
    from b2b_jax.cli import main

    sys.exit(main(words))
