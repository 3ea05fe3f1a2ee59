"""The processes of one job: joining them, agreeing with them, losing one (effects: network)."""

import contextlib
import hashlib
import itertools
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from b2b_jax.models import ConfigError

COORDINATOR = "JAX_COORDINATOR_ADDRESS"
COUNT, INDEX = "JAX_NUM_PROCESSES", "JAX_PROCESS_ID"
JOIN = "B2B_JAX_JOIN"
HEARTBEAT = "B2B_JAX_HEARTBEAT_SECONDS"
WAIT_SECONDS = 7 * 86400
"""How long a process may be busy while others wait, as with preparing the data; not how long it may
be gone."""
HEARTBEAT_SECONDS = 60
"""After so long without a sign of life a process counts as dead, and the others end."""


_WAITS = itertools.count()


class LostProcess(RuntimeError):
    """The processes of the job can no longer go on together and have to be started again."""


def join_processes(environment: Mapping[str, str] | None = None) -> None:
    """Join the other processes of this job, if the environment says that there are any.

    It does so by ``JAX_COORDINATOR_ADDRESS`` with ``JAX_NUM_PROCESSES`` and ``JAX_PROCESS_ID``, or
    as a task of `srun` or `mpirun`, or as a host of a TPU pod under GKE. On the virtual machines of
    a TPU pod nothing in the environment says so: set ``B2B_JAX_JOIN=auto`` there.

    Raises:
        ConfigError: if the environment contradicts itself, or the others cannot be reached.
    """
    found = os.environ if environment is None else environment
    try:
        heartbeat = int(found.get(HEARTBEAT, HEARTBEAT_SECONDS))
        explicit = _explicit(found)
        joins = bool(explicit) or _has_others(found)
    except ValueError as error:
        raise ConfigError(f"environment: {error}") from None
    if not joins:
        return
    # A signal of the scheduler is handled between two steps, and until training begins ends us.
    jax.config.update("jax_enable_preemption_service", False)
    try:
        jax.distributed.initialize(
            **explicit,
            heartbeat_timeout_seconds=heartbeat,
            shutdown_timeout_seconds=heartbeat,
        )
    except (RuntimeError, ValueError) as error:  # JAX raises both for what the network does
        raise ConfigError(
            f"cannot join the other processes of this job: {error}. Expected {COORDINATOR}=HOST:"
            f"PORT, {COUNT} and {INDEX}, or a task of srun or mpirun, or a host of a TPU pod"
        ) from error


def _explicit(found: Mapping[str, str]) -> dict[str, Any]:
    if COORDINATOR not in found:
        alone = [name for name in (COUNT, INDEX) if name in found]
        if alone and not _has_others(found):
            raise ValueError(f"{' and '.join(alone)} is set, but {COORDINATOR} is not")
        return {}
    missing = [name for name in (COUNT, INDEX) if name not in found]
    if missing and not _has_others(found):
        raise ValueError(f"{COORDINATOR} is set, but {' and '.join(missing)} is not")
    words: dict[str, Any] = {"coordinator_address": found[COORDINATOR]}
    if not missing:
        count, index = int(found[COUNT]), int(found[INDEX])
        if not 0 <= index < count:
            raise ValueError(f"{INDEX} is {index}, expected 0 to {COUNT} - 1 ({count - 1})")
        words |= {"num_processes": count, "process_id": index}
    return words


def _has_others(found: Mapping[str, str]) -> bool:
    """Whether a launcher that JAX knows has started several processes."""
    tasks = found.get("SLURM_STEP_NUM_TASKS") or found.get("OMPI_COMM_WORLD_SIZE") or "1"
    hosts = found.get("TPU_WORKER_HOSTNAMES", "").split(",")
    slices = found.get("MEGASCALE_NUM_SLICES", "1")  # each may have one host
    joins = found.get(JOIN) == "auto"
    return int(tasks) > 1 or len(hosts) > 1 or int(slices) > 1 or joins


def is_first() -> bool:
    """Whether this process is the one that writes files and talks."""
    return jax.process_index() == 0


def is_alone() -> bool:
    """Whether the job has this process only."""
    return jax.process_count() == 1


def require_equal(values: Mapping[str, str]) -> None:
    """Make sure that all processes see the same.

    Args:
        values: name -> what this process sees.

    Raises:
        ConfigError: names what differs.
    """
    if jax.process_count() == 1:
        return
    # One may still be busy, with the lock of the run or a large model.
    wait_for_all("all compare what they see")  # a name of its own could itself differ
    digests = np.stack(
        [
            np.frombuffer(hashlib.sha256(value.encode()).digest(), np.uint8)
            for value in values.values()
        ]
    )
    everyone = multihost_utils.process_allgather(digests)
    different = [
        f"{name} (here {value})"
        for index, (name, value) in enumerate(values.items())
        if not (everyone[:, index] == everyone[0, index]).all()
    ]
    if different:
        raise ConfigError(
            f"process {jax.process_index()}: the processes of this job do not see the same "
            f"{', '.join(different)}; all need the same configuration and a shared disk"
        )


def told_by_the_first(words: str) -> str:
    """What the first process has to say, in every process of the job.

    Args:
        words: of the first one; what the others give does not count. At most 2,000 bytes arrive.
    """
    if jax.process_count() == 1:
        return words
    wait_for_all("the first process has something to say")
    mine = np.zeros(_LONGEST, np.uint8)
    encoded = np.frombuffer(words.encode()[:_LONGEST], np.uint8)
    mine[: encoded.size] = encoded
    told = np.asarray(multihost_utils.broadcast_one_to_all(mine), np.uint8)
    return told.tobytes().rstrip(b"\0").decode(errors="ignore")


_LONGEST = 2000


def wait_for_all(name: str) -> None:
    """Return when every process of the job has come here, however long that takes.

    The processes wait for each other and not their devices, whose exchanges give up after a while:
    after 30 seconds on CPUs. All of them must come to the same calls in the same order.

    Args:
        name: of what they wait for, for messages.
    """
    if jax.process_count() > 1:
        key = f"b2b_jax {next(_WAITS)}: {name}"
        ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=1000 * WAIT_SECONDS)


@contextlib.contextmanager
def naming_lost_processes() -> Iterator[None]:
    """Turn what the network says when another process has ended into a message.

    Raises:
        LostProcess: says what to do.
    """
    try:
        yield
    except jax.errors.JaxRuntimeError as error:
        words = str(error)
        is_lost = any(sign in words for sign in _SIGNS) and not is_out_of_memory(error)
        if jax.process_count() == 1 or not is_lost:
            raise
        raise LostProcess(
            f"process {jax.process_index()} of {jax.process_count()}: another process of the job "
            f"has ended ({words.splitlines()[0][:200]}). Nothing after the newest checkpoint is "
            "kept; start all processes again to continue from it"
        ) from error


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a device, or a library on it, had too little memory.

    Example:
        >>> is_out_of_memory(RuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes."))
        True
    """
    words = str(error)
    return "RESOURCE_EXHAUSTED" in words or "out of memory" in words.lower()


_SIGNS = (
    "Connection closed",
    "Connection reset",
    "Gloo",
    "NCCL",
    "nccl",
    "UNAVAILABLE",
    "DEADLINE_EXCEEDED",
)


@dataclass(frozen=True)
class Vote:
    """What the processes agree on between two steps.

    Attributes:
        exit_code: why to stop, 0 to go on; the largest that any process asked for.
        saves: whether the first process finds it time for a checkpoint.
    """

    exit_code: int
    saves: bool


class Votes:
    """Agreement between processes, one step late so that no device waits for it.

    A signal reaches processes at different moments, and their clocks differ; if each acted on its
    own, one would leave the others waiting in the next step.
    """

    def __init__(self, mesh: Mesh) -> None:
        self._alone = jax.process_count() == 1
        self._sharding = NamedSharding(mesh, PartitionSpec(mesh.axis_names))
        self._whole = NamedSharding(mesh, PartitionSpec())
        self._size = mesh.size
        self._pending: jax.Array | None = None
        self._saved = False
        self._largest = jax.jit(lambda votes: votes.max(axis=0), out_shardings=self._whole)

    def cast(self, exit_code: int, *, saves: bool) -> Vote:
        """Say what this process wants and learn what all wanted at the step before.

        Args:
            exit_code: why this process wants to stop, 0 if it does not.
            saves: whether it finds it time for a checkpoint.
        """
        if self._alone:
            return Vote(exit_code, saves)
        mine = np.asarray([[exit_code, saves and is_first()]], np.int32)
        votes = jax.make_array_from_callback(
            (self._size, 2),
            self._sharding,
            lambda index: np.repeat(mine, _length(index, self._size), axis=0),
        )
        newest = self._largest(votes)
        # Nothing is running yet at the first vote, so that it can be waited for.
        result = newest if self._pending is None else self._pending
        self._pending = newest
        code, saving = np.asarray(result.addressable_data(0)).tolist()
        # A vote that was cast before the last save began still asks for it.
        self._saved = bool(saving) and not self._saved
        return Vote(code, self._saved)


def _length(index: Any, size: int) -> int:
    return len(range(*index[0].indices(size)))
